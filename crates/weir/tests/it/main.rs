//! The process layer with real processes: a master and its workers around a stand-in for the engine.
//!
//! The test executable is all three: called by cargo it runs the tests, called by a test it is a master (`--master
//! FOLDER`), and called by that master it is a worker. Masters go into the background and come back to the test process,
//! which is a subreaper, so that their exit can be waited for.

mod processes;
mod stand_in;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let bytes: Vec<Vec<u8>> = arguments.iter().map(|argument| argument.clone().into_bytes()).collect();
    if let Some(program) = weir::spawn::worker_program(&bytes) {
        return stand_in::worker(&program);
    }
    if let [_, flag, folder] = arguments.as_slice()
        && flag == "--master"
    {
        return stand_in::master(folder, bytes.clone());
    }
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let filter = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in processes::TESTS {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}
