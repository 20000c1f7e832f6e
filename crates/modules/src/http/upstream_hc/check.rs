//! Asks the servers of a group for as long as its generation is served by.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use weir_engine::errorlog::Level;
use weir_engine::generation::Generation;
use weir_engine::io::Address;
use weir_engine::reactor::Reactor;
use weir_engine::upstream::health::State;
use weir_engine::upstream::probe::{Asked, Probe, Question};
use weir_engine::upstream::{Health, Peer};

use super::matching::Tests;
use super::{Check, websocket};

/// Of an answer's body only so many bytes are looked at.
const LOOKED_AT: usize = 256 * 1024;
/// Milliseconds between two looks at which servers there are, where they come and go.
const LOOK: u64 = 1_000;

/// A check, compiled.
pub(super) struct Checker {
    spec: Check,
    tests: Tests,
}

impl Checker {
    pub(super) fn new(check: &Check, tests: Tests) -> Self {
        Self { spec: check.clone(), tests }
    }

    /// What its connections are known by.
    pub(super) fn name(&self) -> String {
        self.spec.key()
    }

    pub(super) fn upgrade(&self) -> Option<&'static str> {
        self.spec.websocket.then_some("websocket")
    }

    pub(super) fn keep(&self) -> Option<u64> {
        self.spec.keep
    }
}

/// A task that ends with whoever watches it.
struct Watching {
    health: Arc<Health>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_of(peer: &Peer, health: &Arc<Health>) -> bool {
    peer.health.as_ref().is_some_and(|own| Arc::ptr_eq(own, health))
}

/// Has a task for each server that there is.
pub(super) async fn run(
    checker: Arc<Checker>,
    probe: Arc<Probe>,
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
) {
    let mut watching: Vec<Watching> = vec![];
    loop {
        let group = probe.group().current();
        watching.retain(|watched| group.peers.iter().any(|peer| is_of(peer, &watched.health)));
        // One that the configuration says is down is not asked for anything.
        for peer in group.peers.iter().filter(|peer| !peer.down) {
            let Some(health) = &peer.health else { continue };
            if watching.iter().any(|watched| Arc::ptr_eq(&watched.health, health)) {
                continue;
            }
            let watch = Watch {
                label: checker.label(peer, &group.name),
                address: checker.address(&peer.address),
                health: Arc::clone(health),
                checker: Arc::clone(&checker),
                probe: Arc::clone(&probe),
                reactor: Rc::clone(&reactor),
                generation: Arc::clone(&generation),
            };
            let task = tokio::task::spawn_local(watch.run());
            watching.push(Watching { health: Arc::clone(health), task });
        }
        if !probe.group().is_live() {
            std::future::pending::<()>().await;
        }
        reactor.timers().sleep(LOOK).await;
    }
}

impl Checker {
    fn label(&self, peer: &Peer, group: &str) -> String {
        let (name, text) = (&self.spec.of, String::from_utf8_lossy(&peer.text));
        let port = self.spec.port.map_or(String::new(), |port| format!(", port {port}"));
        format!("health check \"{name}\" of peer {text} in upstream \"{group}\"{port}")
    }

    fn address(&self, of: &Address) -> Address {
        match (of, self.spec.port) {
            (Address::Ip(address), Some(port)) => Address::Ip((address.ip(), port).into()),
            (of, _) => of.clone(),
        }
    }
}

/// One server that is asked again and again.
struct Watch {
    checker: Arc<Checker>,
    probe: Arc<Probe>,
    reactor: Rc<Reactor>,
    generation: Arc<Generation>,
    address: Address,
    label: String,
    health: Arc<Health>,
}

impl Watch {
    async fn run(self) {
        let spec = &self.checker.spec;
        let (mut fails, mut passes) = (0, 0);
        let mut rest = 0;
        loop {
            self.reactor.timers().sleep(rest + random(spec.jitter)).await;
            rest = spec.interval;
            let found = self.ask().await;
            let state = self.health.get(spec.number);
            match found {
                Ok(()) => {
                    (fails, passes) = (0, passes + 1);
                    if state == State::Checking || state == State::Unhealthy && passes >= spec.passes {
                        self.healthy();
                    }
                }
                Err(doing) => {
                    (fails, passes) = (fails + 1, 0);
                    if state != State::Unhealthy && fails >= spec.fails {
                        self.unhealthy(doing);
                    }
                }
            }
        }
    }

    fn healthy(&self) {
        let before = self.health.set(self.checker.spec.number, State::Healthy);
        self.log(Level::Notice, format_args!("peer is healthy, {}", self.label));
        let group = self.probe.group().current();
        let own = |peer: &Peer| is_of(peer, &self.health);
        for (index, peer) in group.peers.iter().enumerate().filter(|(_, peer)| own(peer)) {
            peer.set_gone(peer.is_sick());
            if before == State::Unhealthy && peer.is_healthy() {
                group.round_robin.revive(index, self.reactor.clock().now_ms());
            }
        }
    }

    fn unhealthy(&self, doing: &str) {
        self.health.set(self.checker.spec.number, State::Unhealthy);
        for peer in self.probe.group().current().peers.iter().filter(|peer| is_of(peer, &self.health)) {
            peer.set_gone(true);
        }
        self.reactor.counters.depart();
        self.log(Level::Warn, format_args!("peer is unhealthy while {doing}, {}", self.label));
    }

    fn log(&self, level: Level, message: std::fmt::Arguments<'_>) {
        self.generation.location(self.checker.spec.location).log.write(level, message);
    }

    /// Asks once; what it failed at.
    async fn ask(&self) -> Result<(), &'static str> {
        if self.checker.spec.websocket {
            return self.ask_websocket().await;
        }
        let mut asked = self.question("").await;
        let tests = &self.checker.tests;
        if !asked.status.ok_or(asked.doing).map(|status| tests.is_status(status))? {
            return Err("checking status code");
        }
        if !asked.headers().is_some_and(|headers| tests.are_headers(headers)) {
            return Err("checking header");
        }
        // Its end lets the connection be used again.
        if tests.reads_body() || self.checker.spec.keep.is_some() {
            let Some(Ok(body)) = self.in_time(asked.read(LOOKED_AT)).await else {
                return Err("reading response body from upstream");
            };
            if !tests.is_body(&body) {
                return Err("checking body");
            }
        }
        if tests.is_required(&asked.x) { Ok(()) } else { Err("checking variables") }
    }

    async fn question(&self, fields: &str) -> Asked {
        let uri = &self.checker.spec.uri;
        let question = Question { uri, fields, label: &self.label };
        self.probe.ask(&self.reactor, &self.generation, self.address.clone(), &question).await
    }

    async fn ask_websocket(&self) -> Result<(), &'static str> {
        let (key, fields) = websocket::offer();
        let asked = self.question(&fields).await;
        if asked.status.ok_or(asked.doing)? != 101 {
            return Err("checking status code");
        }
        if !asked.headers().is_some_and(|headers| websocket::is_accepted(&key, headers)) {
            return Err("checking header");
        }
        let mut tunnel = asked.into_tunnel().ok_or("checking status code")?;
        match self.in_time(websocket::ping(&mut tunnel)).await {
            Some(true) => Ok(()),
            Some(false) | None => Err("waiting for Pong"),
        }
    }

    /// Does something that takes no longer in all than a read may.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let timer = self.reactor.timers().register();
        timer.set_in(self.probe.timeout());
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            timer.poll_expired(cx).map(|()| None)
        })
        .await
    }
}

fn random(below: u64) -> u64 {
    let mut bits = [0; 8];
    if below == 0 || aws_lc_rs::rand::fill(&mut bits).is_err() {
        return 0;
    }
    u64::from_ne_bytes(bits) % below
}
