//! `ngx_http_upstream_least_time_module`: the server that is likely to be done first is next.
//!
//! What is expected of a server is what it took on average, for as many requests as it has and one more.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_engine::contract::Install;
use weir_engine::generation::{Build, Plan};
use weir_engine::http::Exchange;
use weir_engine::io::Address;
use weir_engine::reactor::Reactor;
use weir_engine::upstream::{Balance, Look, Picked, RoundRobin, Tried};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_syntax::Diagnostic;

use super::least_conn::least;

pub struct LeastTime;

impl Module for LeastTime {
    const NAME: &'static str = "http_upstream_least_time";
    type Main = ();
    type Scope = Measure;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("least_time", Contexts::UPSTREAM, Takes::ONE_TWO, least_time)];
}

/// What is measured.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    until: Setting<Until>,
    /// Requests on their way count, too.
    inflight: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Header,
    LastByte,
}

impl Conf for Measure {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn least_time(measure: &mut Measure, call: &mut Call<'_>) -> Result<(), Fault> {
    call.balance(LeastTime::NAME, &[]);
    match call.args().get(1).map(|word| &*word.value) {
        None => {}
        Some(b"inflight") => measure.inflight = true,
        Some(_) => return Err(call.invalid_parameter(1)),
    }
    measure.until.one_of(call, &[("header", Until::Header), ("last_byte", Until::LastByte)])
}

impl Install for LeastTime {
    fn prepare((): &(), build: &mut Build<'_>) -> Result<(), Diagnostic> {
        let Some(http) = &build.program.http else { return Ok(()) };
        for (index, upstream) in http.upstreams.iter().enumerate() {
            if !upstream.balancers.contains(&Self::NAME) {
                continue;
            }
            let conf = upstream.confs.get::<Self>();
            let before = build.kept_before::<Latest>(&upstream.name);
            let latest = Arc::new(Latest(Mutex::new(before.and_then(|before| before.lock().clone()))));
            build.keep(&upstream.name, Arc::clone(&latest));
            let (until, inflight) = (conf.until.or(Until::Header), conf.inflight);
            build.edit_upstream(index, move |group| {
                let peers = Arc::clone(&group.round_robin);
                let mut latest = latest.lock();
                let times = Arc::new(Times::new(&peers, latest.as_deref()));
                *latest = Some(Arc::clone(&times));
                group.balance = Arc::new(Soonest { until, inflight, peers, times });
            });
        }
        Ok(())
    }

    fn install(_: &Measure, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

/// The times of a group as it was made last, for the next.
struct Latest(Mutex<Option<Arc<Times>>>);

impl Latest {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Times>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the peers of a group took so far, each known by its address to the next generation.
struct Times(Vec<(Arc<Address>, Arc<Mutex<Time>>)>);

/// Of one peer, in milliseconds; averages in which the last request is a twentieth.
#[derive(Debug, Default)]
struct Time {
    header: u64,
    response: u64,
    /// Requests on their way, when their number changed last, and how long they have taken together until then.
    inflight: u64,
    changed: u64,
    spent: u64,
    /// What one of them took on average.
    each: u64,
}

impl Times {
    fn new(peers: &RoundRobin, before: Option<&Times>) -> Self {
        let mut times: Vec<(Arc<Address>, Arc<Mutex<Time>>)> = vec![];
        for peer in peers.peers().iter() {
            let of_peer =
                |list: &[(Arc<Address>, _)]| list.iter().filter(|(a, _)| *a == peer.address).count();
            let known = before.and_then(|before| {
                before.0.iter().filter(|(address, _)| *address == peer.address).nth(of_peer(&times))
            });
            let time = known.map_or_else(Arc::default, |(_, time)| Arc::clone(time));
            times.push((Arc::clone(&peer.address), time));
        }
        Self(times)
    }

    fn of(&self, index: usize) -> MutexGuard<'_, Time> {
        lock(&self.0[index].1)
    }
}

fn lock(time: &Mutex<Time>) -> MutexGuard<'_, Time> {
    // Plain numbers, usable whatever happened.
    time.lock().unwrap_or_else(PoisonError::into_inner)
}

fn average(average: u64, value: u64) -> u64 {
    if average == 0 { value } else { (0.5 + value as f64 * 0.05 + average as f64 * 0.95) as u64 }
}

/// Times above are all as bad.
const WORST: u64 = 5000;
/// Times that differ by less are as good.
const CLOSE: u64 = 20;

impl Time {
    /// How long a request would take in the end, on a peer that has some already.
    fn expected(&self, until: Until, conns: u32, since_checked: u64, fail_timeout: u64) -> u64 {
        let mut time = match until {
            Until::Header => self.header,
            Until::LastByte => self.response,
        };
        // Once in its `fail_timeout` a peer is thought twice as fast, so that it gets another chance.
        let seconds = since_checked / 1000;
        if seconds > fail_timeout {
            let halves = u32::try_from(seconds / (fail_timeout + 1)).unwrap_or(u32::MAX);
            time = time.checked_shr(halves).unwrap_or(0);
        }
        if self.inflight > 0 {
            time = time.max(self.each);
        }
        let time = if time > WORST { WORST } else { time + CLOSE - time % CLOSE };
        time * (1 + u64::from(conns))
    }

    fn begin(&mut self, now: u64) {
        self.spent += now.saturating_sub(self.changed) * self.inflight;
        self.changed = now;
        self.inflight += 1;
    }

    /// One is over that took so long.
    fn end(&mut self, took: u64, now: u64) {
        if self.inflight == 1 {
            self.spent = 0;
        } else {
            let spent = self.spent + now.saturating_sub(self.changed) * self.inflight;
            self.spent = spent.saturating_sub(took);
            self.changed = now;
        }
        self.inflight = self.inflight.saturating_sub(1);
    }
}

struct Soonest {
    until: Until,
    inflight: bool,
    peers: Arc<RoundRobin>,
    times: Arc<Times>,
}

impl Soonest {
    fn soonest(&self, look: &mut Look<'_>, backup: bool, tried: &Tried, now: u64) -> Option<usize> {
        let expected = |index: usize, since_checked: u64| {
            let (peer, mut time) = (&self.peers.peers()[index], self.times.of(index));
            if let Some(each) = time.spent.checked_div(time.inflight) {
                time.each = average(time.each, each + now.saturating_sub(time.changed));
            }
            time.expected(self.until, peer.conns(), since_checked, peer.fail_timeout)
        };
        // Each is asked once, since asking changes what is known.
        let all: Vec<u64> =
            (0..self.peers.peers().len()).map(|index| expected(index, look.since_checked(index))).collect();
        least(look, backup, tried, |index| all[index])
    }
}

impl Balance for Soonest {
    fn pick(&self, x: &mut Exchange, tried: &mut Tried, now: u64) -> Option<Picked> {
        if self.peers.peers().len() == 1 {
            return self.peers.next(tried, now);
        }
        let mut look = self.peers.look(now);
        let found = self.soonest(&mut look, false, tried, now);
        let index = found.or_else(|| self.soonest(&mut look, true, tried, now))?;
        let mut picked = look.take(index, tried);
        let time = Arc::clone(&self.times.0[index].1);
        if self.inflight {
            lock(&time).begin(now);
        }
        let running = Running {
            reactor: Rc::clone(&x.reactor),
            time,
            started: now,
            header: Cell::new(None),
            inflight: Cell::new(self.inflight),
            ends_with_header: self.until == Until::Header,
            counted: Cell::new(false),
        };
        let running = Rc::new(running);
        tried.more_mut().running = Some(Rc::clone(&running) as _);
        picked.guard.keep(running);
        Some(picked)
    }

    fn answered(&self, x: &Exchange, tried: &Tried, _: usize) {
        let running = tried.more().and_then(|more| more.running.as_ref());
        let running = running.and_then(|running| running.downcast_ref::<Running>());
        if let Some(running) = running {
            running.answered(x.reactor.clock().now_ms());
        }
    }
}

/// A request on its way to a peer; it is over when nobody has it any more.
struct Running {
    reactor: Rc<Reactor>,
    time: Arc<Mutex<Time>>,
    started: u64,
    /// What the head of the answer took. Without one the peer has failed, which says nothing of its speed.
    header: Cell<Option<u64>>,
    /// It counts as on its way.
    inflight: Cell<bool>,
    ends_with_header: bool,
    /// The time of the head is in the average already.
    counted: Cell<bool>,
}

impl Running {
    fn answered(&self, now: u64) {
        let took = now.saturating_sub(self.started);
        self.header.set(Some(took));
        if self.ends_with_header && self.inflight.take() {
            self.counted.set(true);
            let mut time = lock(&self.time);
            time.header = average(time.header, took);
            time.end(took, now);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let now = self.reactor.clock().now_ms();
        let took = now.saturating_sub(self.started);
        let mut time = lock(&self.time);
        if self.inflight.take() {
            time.end(took, now);
        }
        if let Some(header) = self.header.get() {
            time.response = average(time.response, took);
            if !self.counted.get() {
                time.header = average(time.header, header);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_slowly() {
        assert_eq!(average(0, 100), 100);
        assert_eq!(average(100, 200), 105);
        assert_eq!(average(1, 1), 1);
    }

    #[test]
    fn what_is_expected_of_a_peer() {
        #[track_caller]
        fn check(header: u64, response: u64, until: Until, conns: u32, since_checked: u64, expected: u64) {
            let time = Time { header, response, ..Time::default() };
            assert_eq!(time.expected(until, conns, since_checked, 10), expected);
        }
        check(0, 0, Until::Header, 0, 0, 20);
        check(39, 4000, Until::Header, 0, 0, 40);
        check(39, 4000, Until::LastByte, 2, 0, 3 * 4020);
        check(0, 9000, Until::LastByte, 1, 0, 10_000);
        // Chances come with time: at 11 seconds half, at 22 a quarter of what it took.
        check(0, 4000, Until::LastByte, 0, 10_999, 4020);
        check(0, 4000, Until::LastByte, 0, 11_000, 2020);
        check(0, 4000, Until::LastByte, 0, 22_000, 1020);
        check(0, 4000, Until::LastByte, 0, u64::MAX, 20);
    }

    #[test]
    fn requests_on_their_way_count() {
        let mut time = Time::default();
        time.begin(0);
        time.begin(100);
        assert_eq!((time.inflight, time.spent, time.changed), (2, 100, 100));
        time.end(150, 150);
        assert_eq!((time.inflight, time.spent, time.changed), (1, 50, 150));
        time.end(100, 200);
        assert_eq!((time.inflight, time.spent), (0, 0));
        let slow = Time { inflight: 1, each: 300, ..Time::default() };
        assert_eq!(slow.expected(Until::Header, 0, 0, 10), 320);
    }
}
