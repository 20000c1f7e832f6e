//! The process layer with real processes: a master and its workers around a stand-in for the engine.
//!
//! The test executable is all three: called by cargo it runs the tests, called by a test as `it` it is a server, and called
//! by that server it is a worker. Masters go into the background and come back to the test process,
//! which is a subreaper, so that their exit can be waited for.

mod demo;
mod processes;
mod stand_in;

use std::process::ExitCode;

use stand_in::StandIn;
use weir::startup;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // cargo calls tests by the path of their executable, the tests call it by another name.
    if arguments[0].ends_with("/it") || arguments[0].ends_with(": worker process") {
        let arguments = arguments.into_iter().map(String::into_bytes).collect();
        return ExitCode::from(startup::run(&StandIn, arguments, std::env::vars_os().collect()) as u8);
    }
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let filter = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in processes::TESTS.iter().chain(demo::TESTS) {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}
