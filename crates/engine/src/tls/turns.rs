//! Whose turn it is to sign: what a handshake costs at once is as much as a hundred messages of tunnels, and hundreds of
//! clients may say hello while the thread is looking elsewhere.
//!
//! ```text
//! sleeps -> hello signs -> hello waits ---.
//!                     `--> others' events -> signs -> others' events -> next hello signs -> ...
//! ```
//!
//! A handshake that the thread woke up for goes at once, so one that comes alone costs nothing more.

use std::cell::Cell;

use tokio::sync::Semaphore;

use crate::timer;

pub(crate) struct Turns {
    /// The batch of events in which a handshake last had its turn.
    batch: Cell<Option<u32>>,
    /// Held by the next of those that wait.
    next: Semaphore,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { batch: Cell::new(None), next: Semaphore::const_new(1) }
    }

    /// Waits until the thread has looked for other events since the last turn, in the order of coming.
    pub(crate) async fn turn(&self) {
        let batch = Some(timer::batch());
        if self.batch.replace(batch) == batch {
            // It is never closed.
            let _next = self.next.acquire().await;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// The longest row of turns without a look at the events; who had them.
    async fn turns_of(hellos: usize) -> (usize, Vec<usize>) {
        let turns = Rc::new(Turns::new());
        let had = Rc::new(RefCell::new(vec![]));
        let (row, longest) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for hello in 0..hellos {
            let (turns, had) = (Rc::clone(&turns), Rc::clone(&had));
            let (row, longest) = (Rc::clone(&row), Rc::clone(&longest));
            tokio::task::spawn_local(async move {
                turns.turn().await;
                had.borrow_mut().push(hello);
                row.set(row.get() + 1);
                longest.set(longest.get().max(row.get()));
            });
        }
        while had.borrow().len() < hellos {
            // Goes on once the events were looked at.
            tokio::task::yield_now().await;
            row.set(0);
        }
        (longest.get(), had.take())
    }

    #[test]
    fn others_go_on_between_handshakes() {
        let runtime = timer::runtime().unwrap();
        let (longest, had) = runtime.block_on(turns_of(200));
        // The first goes at once, and the next may before anybody else does.
        assert!(longest <= 2, "{longest} in a row");
        assert_eq!(had, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn who_leaves_holds_nobody_up() {
        timer::runtime().unwrap().block_on(async {
            let turns = Rc::new(Turns::new());
            turns.turn().await;
            let wait = |turns: &Rc<Turns>| {
                let turns = Rc::clone(turns);
                tokio::task::spawn_local(async move { turns.turn().await })
            };
            let (first, second, third) = (wait(&turns), wait(&turns), wait(&turns));
            first.abort();
            second.abort();
            third.await.unwrap();
        });
    }

    #[test]
    fn who_comes_alone_does_not_wait() {
        timer::runtime().unwrap().block_on(async {
            let turns = Turns::new();
            for _ in 0..3 {
                // The thread sleeps.
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                let mut turn = std::pin::pin!(turns.turn());
                assert!(
                    std::future::poll_fn(|cx| std::task::Poll::Ready(turn.as_mut().poll(cx)))
                        .await
                        .is_ready()
                );
            }
        });
    }
}
