//! The process layer of weir: command line, signals, pid file, sockets, privileges, master and worker.
//!
//! It is a library beside the binary only so that each part can be tested by itself; nothing below depends on it.

pub mod args;
pub mod channel;
pub mod daemon;
pub mod demo;
mod glob;
pub mod house;
pub mod master;
pub mod message;
pub mod paths;
pub mod pidfile;
pub mod privileges;
pub mod signaller;
pub mod signals;
pub mod sockets;
pub mod spawn;
pub mod startup;
mod sys;
#[cfg(test)]
mod testing;
pub mod title;
pub mod verdict;
pub mod wire;
pub mod worker;
