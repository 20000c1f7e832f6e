//! The worker's side of the channel and of signals: what it is told, from whichever of the two it comes.
//!
//! A worker normally hears from its master, but like nginx's it also obeys signals sent to itself: QUIT, TERM, INT, and
//! USR1; HUP and USR2 are ignored with a message. When the master is gone it goes on serving, as nginx's does. A process
//! without a master (`master_process off`) has only its signals, and reloads by itself.

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook_tokio::SignalsInfo;
use weir_engine::errorlog::{Level, Log};

use crate::channel::{self, Sender};
use crate::master::machine::Signal;
use crate::message::{FromWorker, PassedLog, PassedSocket, ToWorker};
use crate::privileges::Identity;
use crate::signals;

/// What the engine is to do.
#[derive(Debug)]
pub enum Order {
    /// Build a generation and say whether it serves.
    Load { generation: u64, snapshot: std::sync::Arc<[u8]>, sockets: Vec<PassedSocket>, logs: Vec<PassedLog> },
    /// Read the configuration again; only without a master.
    Reload,
    /// Go on in these log files; `None`: open them again yourself.
    Reopen(Option<Vec<PassedLog>>),
    /// Finish what is in flight, then exit.
    Quit,
    /// Exit now.
    Terminate,
}

/// What the worker is told.
pub struct Orders {
    receiver: tokio::sync::mpsc::UnboundedReceiver<io::Result<Option<ToWorker>>>,
    signals: SignalsInfo<WithOrigin>,
    /// There is nobody at the other end of the channel any more.
    master_gone: bool,
    /// There never was.
    alone: bool,
    log: Log,
}

/// What the worker says.
pub struct Answers(Sender);

impl Answers {
    /// Tells the master. A master that is gone is no reason to stop.
    pub async fn say(&mut self, message: FromWorker) {
        let _ = self.0.send(&message).await;
    }
}

/// Waits for the first message, which says what this process shall be, and opens both directions.
///
/// The identity is not assumed yet: the caller does so before it touches anything else.
///
/// # Errors
/// If the channel ends or says something else first.
pub async fn attach(channel: UnixStream, log: Log) -> io::Result<(Identity, Orders, Answers)> {
    let (sender, mut messages) = channel::open(channel)?;
    let signals = signals::catch()?;
    let Some(ToWorker::Start(identity)) = messages.receive().await? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the channel did not start with an identity"));
    };
    let (send, receiver) = tokio::sync::mpsc::unbounded_channel();
    // Receiving is not cancel safe, so it has a task of its own.
    tokio::spawn(async move {
        loop {
            let message = messages.receive().await;
            let last = !matches!(message, Ok(Some(_)));
            if message.is_err() {
                // Out of step, or out of descriptors: the master has to know that only signals are heard from now on.
                messages.close();
            }
            if send.send(message).is_err() || last {
                return;
            }
        }
    });
    let orders = Orders { receiver, signals, master_gone: false, alone: false, log };
    Ok((identity, orders, Answers(sender)))
}

impl Orders {
    /// Orders by signals alone.
    ///
    /// # Errors
    /// If signals cannot be caught.
    pub fn without_master(log: Log) -> io::Result<Orders> {
        let signals = signals::catch()?;
        let (_, receiver) = tokio::sync::mpsc::unbounded_channel();
        Ok(Orders { receiver, signals, master_gone: true, alone: true, log })
    }

    /// The next thing to do. Cancel safe.
    pub async fn next(&mut self) -> Order {
        loop {
            let order = tokio::select! {
                message = self.receiver.recv(), if !self.master_gone => self.told(message),
                origin = signals::next(&mut self.signals) => {
                    let sender = origin.process.map(|process| process.pid).filter(|&pid| pid != 0);
                    Signal::of_number(origin.signal).and_then(|signal| self.signalled(signal, sender))
                }
            };
            if let Some(order) = order {
                return order;
            }
        }
    }

    /// Logs to this from now on: the first log is only there until a configuration names others.
    pub fn log_to(&mut self, log: Log) {
        self.log = log;
    }

    fn told(&mut self, message: Option<io::Result<Option<ToWorker>>>) -> Option<Order> {
        match message {
            Some(Ok(Some(ToWorker::Load { generation, snapshot, sockets, logs }))) => {
                Some(Order::Load { generation, snapshot, sockets, logs })
            }
            Some(Ok(Some(ToWorker::Reopen { logs }))) => Some(Order::Reopen(Some(logs))),
            Some(Ok(Some(ToWorker::Quit))) => Some(Order::Quit),
            Some(Ok(Some(ToWorker::Terminate))) => Some(Order::Terminate),
            Some(Ok(Some(ToWorker::Start(_)))) => None,
            Some(Ok(None)) | None => {
                self.master_gone = true;
                None
            }
            Some(Err(error)) => {
                self.master_gone = true;
                self.log.write_error(Level::Alert, &error, "recvmsg() failed");
                None
            }
        }
    }

    fn signalled(&self, signal: Signal, sender: Option<i32>) -> Option<Order> {
        let (consequence, order) = match signal {
            Signal::Quit => (", shutting down", Some(Order::Quit)),
            Signal::Terminate | Signal::Interrupt => (", exiting", Some(Order::Terminate)),
            Signal::Reopen => (", reopening logs", Some(Order::Reopen(None))),
            Signal::Reload if self.alone => (", reconfiguring", Some(Order::Reload)),
            Signal::Reload | Signal::Upgrade => (", ignoring", None),
            // A terminal sends it to the whole group for each change of its size.
            Signal::StopAccepting => ("", None),
            Signal::Child => return None,
        };
        self.log.write(Level::Notice, signal.received(sender, consequence));
        order
    }
}
