//! The process layer with real processes, around a stand-in for the engine and around the whole of weir.
//!
//! For the stand-in the test executable is all three: called by cargo it runs the tests, called by a test as `it` it is a
//! server, and called by that server it is a worker. Masters go into the background and come back to the test process,
//! which is a subreaper, so that their exit can be waited for.
//!
//! The other tests start weir itself, or the executable that `WEIR_EXECUTABLE` names: with nginx there, what is expected
//! of weir's HTTP is checked against the reference.

mod balancing;
mod buffering;
mod cache;
mod demo;
mod drain;
mod duplex;
mod fastcgi;
mod faults;
mod health;
mod http1;
mod http2;
mod http2_upstreams;
mod locations;
mod persistence;
mod processes;
mod reload;
mod smuggling;
mod stand_in;
mod upstreams;
mod websocket;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use stand_in::StandIn;
use weir::startup;

/// Tests that run at a time: they wait more than they work.
const AT_ONCE: usize = 4;

type Test = (&'static str, fn());

/// The executable under test.
fn executable() -> String {
    std::env::var("WEIR_EXECUTABLE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_weir").into())
}

/// Understands as much of a test harness's command line as `cargo test` and `cargo nextest` use.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // cargo calls tests by the path of their executable, the tests call it by another name.
    if arguments[0].ends_with("/it") || arguments[0].ends_with(": worker process") {
        let arguments = arguments.into_iter().map(String::into_bytes).collect();
        return ExitCode::from(startup::run(&StandIn, arguments, std::env::vars_os().collect()) as u8);
    }
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let (mut list, mut exact, mut ignored, mut filters) = (false, false, false, Vec::new());
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--list" => list = true,
            "--exact" => exact = true,
            "--ignored" => ignored = true,
            "--format" | "--color" | "--test-threads" => _ = rest.next(),
            option if option.starts_with('-') => {}
            filter => filters.push(filter),
        }
    }
    let all: [&[Test]; 19] = [
        buffering::TESTS,
        cache::TESTS,
        faults::TESTS,
        processes::TESTS,
        reload::TESTS,
        drain::TESTS,
        duplex::TESTS,
        fastcgi::TESTS,
        upstreams::TESTS,
        health::TESTS,
        balancing::TESTS,
        persistence::TESTS,
        websocket::TESTS,
        http1::TESTS,
        http2::TESTS,
        http2_upstreams::TESTS,
        smuggling::TESTS,
        demo::TESTS,
        locations::TESTS,
    ];
    let matches = |name: &str, filter: &str| if exact { name == filter } else { name.contains(filter) };
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| matches(name, filter));
    let mut tests: Vec<Test> = all.concat().into_iter().filter(|(name, _)| chosen(name)).collect();
    if ignored {
        tests.clear();
    }
    if list {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = catch_unwind(test).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("test result: {} passed; {failed} failed", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
