//! Stories of a master: each event with all that it leads to.

use super::*;

/// A machine in the middle of a story; each act checks all that it leads to.
struct Story(Machine);

impl Story {
    /// A master whose worker 10 serves generation 1.
    fn running() -> Story {
        let mut story = Story(Machine::new(true));
        let started = story.0.start();
        assert_eq!(started, [notice("start worker processes"), Action::Spawn { generation: 1 }]);
        story.then(Event::Spawned { pid: 10, generation: 1 }, [notice("start worker process 10")]);
        story.then(Event::Ready { pid: 10, generation: 1 }, []);
        story
    }

    #[track_caller]
    fn then<const N: usize>(&mut self, event: Event, expected: [Action; N]) {
        assert_eq!(self.0.step(event), expected);
    }

    /// A signal from process 5, and what follows after the line that says so.
    #[track_caller]
    fn signal<const N: usize>(&mut self, signal: Signal, line: &str, expected: [Action; N]) {
        let event = Event::Signal { signal, sender: Some(5), parent_alive: false };
        let actions = self.0.step(event);
        assert_eq!(actions[0], notice(line));
        assert_eq!(actions[1..], expected);
    }

    #[track_caller]
    fn reload(&mut self, generation: u64) {
        let plan = Action::Plan { generation };
        self.signal(Signal::Reload, HUP, [notice("reconfiguring"), plan]);
    }

    #[track_caller]
    fn dies<const N: usize>(&mut self, pid: i32, expected: [Action; N]) {
        let how = Exit::Signal { number: 9, core_dumped: false };
        let actions = self.0.step(Event::Exited { pid, how });
        let line = format!("worker process {pid} exited on signal 9");
        assert_eq!(actions[0], Action::Log(Level::Alert, line));
        assert_eq!(actions[1..], expected);
    }

    #[track_caller]
    fn exits<const N: usize>(&mut self, pid: i32, expected: [Action; N]) {
        let actions = self.0.step(Event::Exited { pid, how: Exit::Code(0) });
        assert_eq!(actions[0], notice(&format!("worker process {pid} exited with code 0")));
        assert_eq!(actions[1..], expected);
    }
}

const HUP: &str = "signal 1 (SIGHUP) received from 5, reconfiguring";
const QUIT: &str = "signal 3 (SIGQUIT) received from 5, shutting down";
const TERM: &str = "signal 15 (SIGTERM) received from 5, exiting";
const WINCH: &str = "signal 28 (SIGWINCH) received from 5, stop accepting connections";
const USR2: &str = "signal 12 (SIGUSR2) received from 5, changing binary";

fn notice(text: &str) -> Action {
    Action::Log(Level::Notice, text.into())
}

fn no(text: &str) -> Action {
    Action::Verdict(Err(text.as_bytes().to_vec()))
}

fn planned(generation: u64) -> Event {
    Event::Planned { generation, replace: false }
}

#[test]
fn a_reload_waits_for_a_worker_that_starts() {
    let starting = || {
        let mut story = Story(Machine::new(true));
        story.0.start();
        story.then(Event::Spawned { pid: 10, generation: 1 }, [notice("start worker process 10")]);
        story.signal(Signal::Reload, HUP, []);
        story
    };
    let reloads = [notice("reconfiguring"), Action::Plan { generation: 2 }];
    let mut story = starting();
    story.then(Event::Ready { pid: 10, generation: 1 }, reloads.clone());
    story.then(planned(2), [Action::Load { pid: 10, generation: 2 }]);
    // One that dies or is deaf is no longer waited for.
    let [line, plan] = reloads.clone();
    starting().dies(10, [Action::Arm(RESPAWN_PAUSE), line, plan]);
    starting().then(Event::Deaf { pid: 10 }, reloads);
    // And whoever waits for the verdict hears of the end.
    let mut story = starting();
    story.signal(Signal::Quit, QUIT, [Action::Quit { pid: 10 }, Action::CloseListeners]);
    story.exits(10, [no("the server is shutting down\n"), Action::Exit]);
}

#[test]
fn a_reload_is_a_swap_in_the_same_worker() {
    let mut story = Story::running();
    story.reload(2);
    story.then(planned(2), [Action::Load { pid: 10, generation: 2 }]);
    let ready = Event::Ready { pid: 10, generation: 2 };
    story.then(ready, [Action::Commit { generation: 2 }, Action::Verdict(Ok(()))]);
    story.dies(10, [Action::Spawn { generation: 2 }]);
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let mut story = Story::running();
    story.reload(2);
    story.then(Event::PlanFailed { generation: 2, diagnostics: b"bad".to_vec() }, [no("bad")]);
    story.reload(3);
    story.then(planned(3), [Action::Load { pid: 10, generation: 3 }]);
    let refused = Event::Refused { pid: 10, generation: 3, diagnostics: b"worse".to_vec() };
    story.then(refused, [Action::Discard { generation: 3 }, no("worse")]);
    story.dies(10, [Action::Spawn { generation: 1 }]);
}

#[test]
fn reloads_asked_for_during_a_reload_become_one_more() {
    let mut story = Story::running();
    story.reload(2);
    story.signal(Signal::Reload, HUP, []);
    story.then(planned(2), [Action::Load { pid: 10, generation: 2 }]);
    story.signal(Signal::Reload, HUP, []);
    story.then(
        Event::Ready { pid: 10, generation: 2 },
        [
            Action::Commit { generation: 2 },
            Action::Verdict(Ok(())),
            notice("reconfiguring"),
            Action::Plan { generation: 3 },
        ],
    );
}

#[test]
fn what_a_worker_cannot_become_takes_another_worker() {
    let mut story = Story::running();
    story.reload(2);
    let event = Event::Planned { generation: 2, replace: true };
    story.then(event, [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 11, generation: 2 }, [notice("start worker process 11")]);
    story.then(
        Event::Ready { pid: 11, generation: 2 },
        [Action::Commit { generation: 2 }, Action::Quit { pid: 10 }, Action::Verdict(Ok(()))],
    );
    story.exits(10, []);
    story.dies(11, [Action::Spawn { generation: 2 }]);
}

#[test]
fn a_replacement_that_dies_leaves_the_old_worker_alone() {
    let mut story = Story::running();
    story.reload(2);
    let event = Event::Planned { generation: 2, replace: true };
    story.then(event, [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 11, generation: 2 }, [notice("start worker process 11")]);
    let verdict = no("the worker process was lost while loading the configuration\n");
    story.dies(11, [Action::Discard { generation: 2 }, verdict]);
    story.dies(10, [Action::Spawn { generation: 1 }]);
}

#[test]
fn a_worker_that_dies_of_a_reload_comes_back_with_the_old_configuration() {
    let mut story = Story::running();
    story.reload(2);
    story.then(planned(2), [Action::Load { pid: 10, generation: 2 }]);
    let verdict = no("the worker process was lost while loading the configuration\n");
    story.dies(10, [Action::Discard { generation: 2 }, verdict, Action::Spawn { generation: 1 }]);
}

#[test]
fn a_worker_that_lost_its_channel_is_replaced_by_the_next_reload() {
    let mut story = Story::running();
    story.reload(2);
    story.then(planned(2), [Action::Load { pid: 10, generation: 2 }]);
    let verdict = no("the worker process was lost while loading the configuration\n");
    story.then(Event::Deaf { pid: 10 }, [Action::Discard { generation: 2 }, verdict]);
    story.reload(3);
    story.then(planned(3), [notice("start worker processes"), Action::Spawn { generation: 3 }]);
    story.then(Event::Spawned { pid: 11, generation: 3 }, [notice("start worker process 11")]);
    story.then(
        Event::Ready { pid: 11, generation: 3 },
        [Action::Commit { generation: 3 }, Action::Quit { pid: 10 }, Action::Verdict(Ok(()))],
    );
}

#[test]
fn the_end_of_a_channel_may_be_seen_before_the_end_of_its_worker() {
    let mut story = Story::running();
    story.then(Event::Deaf { pid: 10 }, []);
    story.dies(10, [Action::Spawn { generation: 1 }]);
    story.then(Event::Spawned { pid: 11, generation: 1 }, [notice("start worker process 11")]);
    story.then(Event::Ready { pid: 11, generation: 1 }, []);
    story.reload(2);
    let event = Event::Planned { generation: 2, replace: true };
    story.then(event, [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 12, generation: 2 }, [notice("start worker process 12")]);
    let verdict = no("the worker process was lost while loading the configuration\n");
    story.then(Event::Deaf { pid: 12 }, [Action::Discard { generation: 2 }, verdict]);
    story.dies(12, []);
    story.dies(11, [Action::Spawn { generation: 1 }]);
}

#[test]
fn a_worker_that_cannot_start_is_tried_again_after_a_pause() {
    let mut story = Story::running();
    story.dies(10, [Action::Spawn { generation: 1 }]);
    story.then(Event::Spawned { pid: 11, generation: 1 }, [notice("start worker process 11")]);
    story.dies(11, [Action::Arm(RESPAWN_PAUSE)]);
    story.then(Event::Tick, [Action::Spawn { generation: 1 }]);
    let failed = Event::SpawnFailed { generation: 1 };
    let alert = Action::Log(Level::Alert, "could not respawn worker process".into());
    story.then(failed, [alert, Action::Arm(RESPAWN_PAUSE)]);
    story.then(Event::Tick, [Action::Spawn { generation: 1 }]);
    story.then(Event::Tick, []);
}

fn refused(pid: i32, generation: u64) -> Event {
    Event::Refused { pid, generation, diagnostics: b"no".to_vec() }
}

/// A master whose first worker, 10, was refused.
fn refused_at_start() -> Story {
    let mut story = Story(Machine::new(true));
    story.0.start();
    story.then(Event::Spawned { pid: 10, generation: 1 }, [notice("start worker process 10")]);
    story.then(refused(10, 1), [Action::Terminate { pid: 10 }, Action::Arm(RESPAWN_PAUSE)]);
    story
}

#[test]
fn a_first_worker_that_is_refused_is_tried_again() {
    let mut story = refused_at_start();
    story.exits(10, []);
    story.then(Event::Tick, [Action::Spawn { generation: 1 }]);
    story.then(Event::Spawned { pid: 11, generation: 1 }, [notice("start worker process 11")]);
    // A reload that waits for it begins with its refusal.
    story.signal(Signal::Reload, HUP, []);
    story.then(
        refused(11, 1),
        [
            Action::Terminate { pid: 11 },
            Action::Arm(RESPAWN_PAUSE),
            notice("reconfiguring"),
            Action::Plan { generation: 2 },
        ],
    );
}

#[test]
fn a_reload_corrects_what_the_first_worker_refused() {
    let mut story = refused_at_start();
    story.reload(2);
    // The next try begins while the configuration is read, and fails beside its worker.
    story.then(Event::Tick, [Action::Spawn { generation: 1 }]);
    story.then(Event::Spawned { pid: 11, generation: 1 }, [notice("start worker process 11")]);
    story.then(planned(2), [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 12, generation: 2 }, [notice("start worker process 12")]);
    story.then(refused(11, 1), [Action::Terminate { pid: 11 }]);
    story.exits(11, []);
    story.then(
        Event::Ready { pid: 12, generation: 2 },
        [Action::Commit { generation: 2 }, Action::Verdict(Ok(()))],
    );
    story.then(Event::Tick, []);
}

#[test]
fn where_nothing_serves_a_refused_reload_is_no_end() {
    let mut story = refused_at_start();
    story.exits(10, []);
    story.reload(2);
    story.then(planned(2), [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 11, generation: 2 }, [notice("start worker process 11")]);
    story.then(
        refused(11, 2),
        [
            Action::Discard { generation: 2 },
            Action::Terminate { pid: 11 },
            Action::Arm(RESPAWN_PAUSE),
            no("no"),
        ],
    );
    story.then(Event::Tick, [Action::Spawn { generation: 1 }]);
}

#[test]
fn exit_code_2_is_fatal_until_the_next_reload() {
    let mut story = Story::running();
    story.then(
        Event::Exited { pid: 10, how: Exit::Code(2) },
        [
            notice("worker process 10 exited with code 2"),
            Action::Log(
                Level::Alert,
                "worker process 10 exited with fatal code 2 and cannot be respawned".into(),
            ),
        ],
    );
    story.reload(2);
    story.then(planned(2), [notice("start worker processes"), Action::Spawn { generation: 2 }]);
}

#[test]
fn quit_waits_for_the_worker() {
    let mut story = Story::running();
    story.signal(Signal::Quit, QUIT, [Action::Quit { pid: 10 }, Action::CloseListeners]);
    story.signal(Signal::Quit, QUIT, []);
    story.signal(Signal::Reload, HUP, [no("the server is shutting down\n")]);
    story.signal(Signal::Child, "signal 17 (SIGCHLD) received from 5", [Action::Reap]);
    story.exits(10, [Action::Exit]);
}

#[test]
fn a_configuration_planned_too_late_is_dropped() {
    let mut story = Story::running();
    story.reload(2);
    story.signal(Signal::Quit, QUIT, [Action::Quit { pid: 10 }, Action::CloseListeners]);
    story.then(planned(2), [Action::Discard { generation: 2 }, no("the server is shutting down\n")]);
    story.exits(10, [Action::Exit]);
}

#[test]
fn terminate_asks_more_and_more_urgently() {
    let mut story = Story::running();
    let ask = || Action::Terminate { pid: 10 };
    let wait = |milliseconds| Action::Arm(Duration::from_millis(milliseconds));
    story.signal(Signal::Quit, QUIT, [Action::Quit { pid: 10 }, Action::CloseListeners]);
    story.signal(Signal::Terminate, TERM, [ask(), wait(50)]);
    story.signal(Signal::Terminate, TERM, []);
    for milliseconds in [100, 200, 400, 800] {
        story.then(Event::Tick, [ask(), wait(milliseconds)]);
    }
    story.then(Event::Tick, [Action::Kill { pid: 10 }, wait(1600)]);
    story.dies(10, [Action::Exit]);
}

#[test]
fn an_upgrade_that_succeeds() {
    let mut story = Story::running();
    story.signal(Signal::Upgrade, USR2, [notice("changing binary"), Action::Upgrade]);
    story.then(Event::Upgraded { pid: 20 }, [notice("start new binary process 20")]);
    assert!(story.0.upgrading());
    story.signal(Signal::StopAccepting, WINCH, [Action::Quit { pid: 10 }]);
    story.exits(10, []);
    story.signal(Signal::Quit, QUIT, [Action::CloseListeners, Action::Exit]);
}

#[test]
fn an_upgrade_that_is_taken_back() {
    let mut story = Story::running();
    story.signal(Signal::Upgrade, USR2, [notice("changing binary"), Action::Upgrade]);
    story.then(Event::Upgraded { pid: 20 }, [notice("start new binary process 20")]);
    story.signal(Signal::StopAccepting, WINCH, [Action::Quit { pid: 10 }]);
    let start = [notice("start worker processes"), Action::Spawn { generation: 1 }];
    let [log, spawn] = start.clone();
    story.signal(Signal::Reload, HUP, [Action::Verdict(Ok(())), log, spawn]);
    story.then(Event::Spawned { pid: 12, generation: 1 }, [notice("start worker process 12")]);
    story.exits(10, []);
    let exited = Event::Exited { pid: 20, how: Exit::Code(0) };
    story.then(exited, [notice("new binary process 20 exited with code 0"), Action::RestorePidFile]);
    assert!(!story.0.upgrading());
}

#[test]
fn workers_come_back_when_the_new_binary_fails() {
    let mut story = Story::running();
    story.signal(Signal::Upgrade, USR2, [notice("changing binary"), Action::Upgrade]);
    story.then(Event::Upgraded { pid: 20 }, [notice("start new binary process 20")]);
    story.signal(Signal::StopAccepting, WINCH, [Action::Quit { pid: 10 }]);
    story.exits(10, []);
    story.then(
        Event::Exited { pid: 20, how: Exit::Code(1) },
        [
            notice("new binary process 20 exited with code 1"),
            Action::RestorePidFile,
            notice("start worker processes"),
            Action::Spawn { generation: 1 },
        ],
    );
}

#[test]
fn a_worker_that_came_back_by_a_reload_stays_the_only_one() {
    let mut story = Story::running();
    story.signal(Signal::StopAccepting, WINCH, [Action::Quit { pid: 10 }]);
    story.exits(10, []);
    story.reload(2);
    story.then(planned(2), [notice("start worker processes"), Action::Spawn { generation: 2 }]);
    story.then(Event::Spawned { pid: 11, generation: 2 }, [notice("start worker process 11")]);
    let ready = Event::Ready { pid: 11, generation: 2 };
    story.then(ready, [Action::Commit { generation: 2 }, Action::Verdict(Ok(()))]);
    story.signal(Signal::Upgrade, USR2, [notice("changing binary"), Action::Upgrade]);
    story.then(Event::Upgraded { pid: 20 }, [notice("start new binary process 20")]);
    story.then(
        Event::Exited { pid: 20, how: Exit::Code(1) },
        [notice("new binary process 20 exited with code 1"), Action::RestorePidFile],
    );
}

#[test]
fn an_upgrade_beside_another_is_ignored() {
    let mut story = Story::running();
    let parent_alive = true;
    let ignored = story.0.step(Event::Signal { signal: Signal::Upgrade, sender: None, parent_alive });
    assert_eq!(ignored[0], notice("signal 12 (SIGUSR2) received, ignoring"));
    assert!(matches!(ignored[1], Action::Log(Level::Crit, _)));
    assert_eq!(ignored.len(), 2);
}

#[test]
fn a_foreground_master_does_not_mind_its_terminal() {
    let mut story = Story(Machine { daemonized: false, ..Story::running().0 });
    story.signal(Signal::StopAccepting, "signal 28 (SIGWINCH) received from 5", []);
}

#[test]
fn logs_are_reopened_also_while_quitting() {
    let line = "signal 10 (SIGUSR1) received from 5, reopening logs";
    let mut story = Story::running();
    story.signal(Signal::Quit, QUIT, [Action::Quit { pid: 10 }, Action::CloseListeners]);
    story.signal(Signal::Reopen, line, [notice("reopening logs"), Action::Reopen]);
}

#[test]
fn an_unknown_child_is_named_so() {
    let mut story = Story::running();
    let how = Exit::Signal { number: 11, core_dumped: true };
    let line = "unknown process 99 exited on signal 11 (core dumped)".into();
    story.then(Event::Exited { pid: 99, how }, [Action::Log(Level::Alert, line)]);
}
