//! A soak: the real executable before upstreams that answer, and upstreams that do all that upstreams do wrong, for as long
//! as one likes. `scripts/soak` runs it.
//!
//! Each request carries a number of its own, and each byte of a right answer shows which one it is for. So an answer that
//! did not come, or came to somebody else, or came in part and looks whole, is seen at once. Meanwhile tunnels carry
//! messages, the configuration is loaded anew and logs are opened again. In the end all clients are gone, and the server
//! must have no more descriptors, connections and memory than before they came.

mod backends;
mod clients;
mod judge;
mod rng;
mod server;
mod tally;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use weir_testkit::Origin;

use rng::Rng;
use server::Soaked;
use tally::{Kind, Tally};

const USAGE: &str =
    "usage: soak [--binary FILE] [--seconds N | --faults N] [--clients N] [--tunnels N] [--seed N]
  --binary   the executable, target/release/weir by default
  --seconds  how long, 1800 by default
  --faults   instead: until upstreams have gone wrong that often
  --clients  how many ask at a time, 12 by default, a fourth of them over HTTP/2
  --tunnels  how many WebSockets there are beside them, 4 by default
  --seed     of the dice, 1 by default";

struct Options {
    binary: String,
    seconds: u64,
    faults: Option<u64>,
    clients: u64,
    tunnels: u64,
    seed: u64,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        binary: concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/weir").into(),
        seconds: 1800,
        faults: None,
        clients: 12,
        tunnels: 4,
        seed: 1,
    };
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = value.parse().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--binary" => options.binary = value,
            "--seconds" => options.seconds = number?,
            "--faults" => options.faults = Some(number?),
            "--clients" => options.clients = number?,
            "--tunnels" => options.tunnels = number?,
            "--seed" => options.seed = number?,
            _ => return Err(format!("no option {name}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => soak(&options),
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Between two looks at the whole.
const TICK: Duration = Duration::from_millis(100);

/// Ticks between two reloads, of the logs' or the configuration's, and between two lines of progress.
const RELOAD: u64 = 50;
const PROGRESS: u64 = 300;

fn soak(options: &Options) -> ExitCode {
    let tally = Tally::shared();
    let (steady, faulty) = (backends::steady(&tally), backends::faulty(&tally));
    let echo = Origin::echoing();
    let server = Soaked::start(&options.binary, &steady, &faulty, &echo);
    let before = server.whole_state();
    println!("before: {before}");
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    // What is grown into first is no leak.
    let mut grown = before.rss;
    std::thread::scope(|scope| {
        for number in 0..options.clients + options.tunnels {
            let (tally, over, server) = (&tally, &over, server.addresses());
            let rng = Rng::new(options.seed.wrapping_mul(1 << 32) + number);
            scope.spawn(move || match number {
                n if n >= options.clients => clients::tunnels(rng, server, tally, over),
                n if n % 4 == 3 => clients::http2(rng, server, tally, over),
                _ => clients::http1(rng, server, tally, over),
            });
        }
        for tick in 1.. {
            let asleep = Instant::now();
            std::thread::sleep(TICK);
            tally.awoke(asleep, TICK);
            let faults = tally.count(Kind::Fault);
            let seconds = began.elapsed().as_secs();
            let share = match options.faults {
                Some(enough) => faults as f64 / enough.max(1) as f64,
                None => began.elapsed().as_secs_f64() / options.seconds.max(1) as f64,
            };
            if share < 0.3 {
                grown = grown.max(server.state().rss);
            }
            if tick % RELOAD == 0 {
                server.disturb(tick / RELOAD);
            }
            if tick % PROGRESS == 0 {
                let requests = tally.count(Kind::Asked);
                println!("{seconds} s: {requests} requests, {faults} faults, {}", server.state());
            }
            if share >= 1.0 {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    println!("{} s", began.elapsed().as_secs());
    let mut wrong = tally.offences();
    wrong.extend(server.settle(&before, grown, &tally));
    println!("{tally}");
    if wrong.is_empty() {
        println!("verdict: nothing lost, nothing mixed up, nothing left behind");
        return ExitCode::SUCCESS;
    }
    println!("verdict: FAIL\n{}", wrong.join("\n"));
    ExitCode::FAILURE
}
