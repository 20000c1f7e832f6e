//! Caches of upstreams' answers (`…_cache_path`): the index of a zone in memory, shared by all threads and kept over reloads,
//! and the files that it is about.
//!
//! The index knows of a key whether there is a file, who is fetching it and how often it was asked for; everything else is in
//! the file. Its locks are short: no file is touched under them.

mod file;
mod manager;
mod purge;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use weir_ir::program::PathSpec;
use weir_syntax::Level;

use crate::errorlog::Log;

pub use file::{Header, Opened, ROOM, Stored, Unusable, beside, head_start, open, path, place, update};

use purge::Purges;

/// The MD5 of what an answer is known by.
pub type Key = [u8; 16];

/// How fast the manager or the loader goes on: files at once, milliseconds that they may take, milliseconds of rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub files: u64,
    pub sleep: u64,
    pub threshold: u64,
}

/// A cache as configured.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Whose it is.
    pub module: &'static str,
    pub name: Arc<str>,
    pub path: PathSpec,
    /// Bytes of the index.
    pub size: u64,
    pub use_temp_path: bool,
    /// Seconds after which a file that nobody asked for is removed.
    pub inactive: u64,
    pub max_size: Option<u64>,
    pub min_free: u64,
    pub manager: Pace,
    pub loader: Pace,
    /// Of who looks for what was purged, where there is one.
    pub purger: Option<Pace>,
}

/// A cache in a generation.
pub struct Zone {
    pub spec: Arc<Spec>,
    shared: Arc<Shared>,
}

/// What goes over from generation to generation.
struct Shared {
    index: Mutex<Index>,
    /// The settings that the manager goes by: those of the last published generation.
    spec: Mutex<Arc<Spec>>,
    /// Somebody has fetched a key, or given it up: told to those who wait for that key, and few others.
    released: [Notify; BELLS],
    /// Not all files are known yet.
    cold: AtomicBool,
    managed: AtomicBool,
    purges: Purges,
    log: Log,
}

/// Among so many keys are divided by who waits for them; a power of two.
const BELLS: usize = 64;
/// Bytes that a node takes of a zone.
const NODE: u64 = 128;
/// Files of a zone that stay open from one request to the next.
const KEPT: usize = 256;

#[derive(Default)]
struct Index {
    nodes: HashMap<Key, Node>,
    /// From the one not asked for in the longest time.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    /// Keys of files that were kept open, from the one kept for the longest time.
    kept: VecDeque<Key>,
    /// Bytes of all files.
    size: u64,
    most: usize,
    /// So many nodes, that some are to be removed.
    watermark: usize,
}

/// What is known of a key. Times are seconds since the epoch.
#[derive(Debug, Default)]
struct Node {
    used_at: u64,
    /// Requests that hold it.
    count: u32,
    uses: u64,
    expires: i64,
    exists: bool,
    search: Search,
    updating: bool,
    /// Answers that are here as a whole, whose files are about to take their place.
    placing: u32,
    /// Those of which that was said before, wherever they are by now.
    placed: u64,
    /// Milliseconds since the epoch, until which others wait for who updates it.
    locked_until: u64,
    /// A status that is answered with until `valid`, in place of a file; 0 is none.
    error: u16,
    valid: i64,
    disk: u64,
    /// When the request began that its file was stored by, as the index counts; 0 is not known.
    asked_at: u64,
    /// Its file, kept open.
    file: Option<Arc<Opened>>,
}

/// How far the search is for a file that the index does not know of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    #[default]
    Due,
    /// A request is at it.
    Begun,
    Over,
}

/// What the index says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing before this request.
    New,
    /// It was asked for often enough to be worth a file, or has one.
    Worth {
        exists: bool,
    },
    /// Not often enough.
    Scarce,
    Error(u16),
    /// It will be known at once: an answer of which somebody may have the last byte already takes its place, or another
    /// request looks for the file.
    Unsettled,
}

/// What became of an attempt to fetch a key for others, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    Mine,
    /// Until about then another one has it; milliseconds since the epoch.
    Until(u64),
    /// Another one has fetched it in the meantime.
    Stored,
}

impl Zone {
    /// A cache that goes on from the generation before, where that had it.
    ///
    /// # Errors
    /// It was somewhere else there.
    pub fn open(spec: &Arc<Spec>, before: Option<&Zone>, log: &Log) -> Result<Self, String> {
        if let Some(before) = before.filter(|before| before.spec.size == spec.size) {
            let (name, path, was) = (&spec.name, &spec.path.path, &before.spec.path.path);
            if path != was {
                return Err(format!(
                    "cache \"{name}\" uses the \"{path}\" cache path while previously it used the \"{was}\" cache path"
                ));
            }
            if spec.path.levels != before.spec.path.levels {
                return Err(format!("cache \"{name}\" had previously different levels"));
            }
            return Ok(Self { spec: Arc::clone(spec), shared: Arc::clone(&before.shared) });
        }
        let most = usize::try_from(spec.size / NODE).unwrap_or(usize::MAX);
        let shared = Shared {
            index: Mutex::new(Index { most, watermark: usize::MAX, ..Index::default() }),
            spec: Mutex::new(Arc::clone(spec)),
            released: std::array::from_fn(|_| Notify::new()),
            cold: AtomicBool::new(true),
            managed: AtomicBool::new(false),
            purges: Purges::default(),
            log: log.clone(),
        };
        Ok(Self { spec: Arc::clone(spec), shared: Arc::new(shared) })
    }

    /// From now on files are managed by the settings of this generation.
    pub(crate) fn publish(&self) {
        *self.shared.spec.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&self.spec);
        if !self.shared.managed.swap(true, Ordering::Relaxed) {
            manager::start(&self.shared);
        }
        purge::start(&self.shared, &self.spec);
    }

    fn is_cold(&self) -> bool {
        self.shared.cold.load(Ordering::Relaxed)
    }

    /// Counts a request for a key and holds the key for it. `None`: there is no room, which is logged.
    pub fn hold(self: &Arc<Self>, key: Key, min_uses: u64, now: i64) -> Option<(Hold, Known)> {
        let mut index = self.shared.lock();
        if !index.nodes.contains_key(&key) && index.nodes.len() >= index.most {
            index.watermark = index.nodes.len() - index.nodes.len() / 8;
            drop(index);
            manager::remove_oldest(&self.shared, &self.spec);
            index = self.shared.lock();
            if index.nodes.len() >= index.most {
                let message =
                    format_args!("could not allocate node in cache keys zone \"{}\"", self.spec.name);
                self.shared.log.write(Level::Alert, message);
                return None;
            }
        }
        let mut known = Known::New;
        let expires = now.saturating_add_unsigned(self.spec.inactive);
        let node = index.touch(key, expires);
        node.count += 1;
        node.uses += 1;
        let awaited = node.placed + u64::from(node.placing);
        let (kept, began) = (node.file.clone(), node.used_at);
        if node.uses > 1 {
            known = node.known(min_uses, awaited, now);
        }
        let zone = Arc::clone(self);
        let (main, searching, updating, placing, error, done) = (None, false, None, false, None, false);
        Some((
            Hold {
                zone,
                key,
                kept,
                main,
                min_uses,
                began,
                awaited,
                searching,
                updating,
                placing,
                error,
                done,
            },
            known,
        ))
    }
}

impl Shared {
    /// The settings that files are managed by now.
    fn spec(&self) -> Arc<Spec> {
        Arc::clone(&self.spec.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn released(&self, key: &Key) -> &Notify {
        &self.released[usize::from(key[0]) % BELLS]
    }

    /// Lets go of all files that are kept open: of those that somebody removed, the disk is to have its room back.
    fn close_kept(&self) {
        let mut index = self.lock();
        let keys = std::mem::take(&mut index.kept);
        let files: Vec<_> = keys
            .iter()
            .filter_map(|key| index.nodes.get_mut(key).and_then(|node| node.file.take()))
            .collect();
        drop(index);
        drop(files);
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// The node of a key, made where there is none, as the one used last.
    fn touch(&mut self, key: Key, expires: i64) -> &mut Node {
        self.uses += 1;
        let node = self.nodes.entry(key).or_default();
        self.by_use.remove(&node.used_at);
        self.by_use.insert(self.uses, key);
        node.used_at = self.uses;
        node.expires = expires;
        node
    }

    /// Forgets a key; its file, to be closed without the lock.
    #[must_use]
    fn remove(&mut self, key: &Key) -> Option<Arc<Opened>> {
        let node = self.nodes.remove(key)?;
        self.by_use.remove(&node.used_at);
        self.size -= node.disk;
        node.file
    }

    /// Keeps the file of a key open; another that is let go for it, to be closed without the lock.
    #[must_use]
    fn keep(&mut self, key: Key, file: &Arc<Opened>) -> [Option<Arc<Opened>>; 2] {
        let Some(node) = self.nodes.get_mut(&key) else { return [None, None] };
        let before = node.file.replace(Arc::clone(file));
        if before.is_none() {
            self.kept.push_back(key);
        }
        let oldest = if self.kept.len() > KEPT { self.kept.pop_front() } else { None };
        [before, oldest.and_then(|key| self.nodes.get_mut(&key)?.file.take())]
    }

    /// Of a file that the index may not know of yet.
    fn learn(&mut self, key: &Key, disk: u64) {
        if let Some(node) = self.nodes.get_mut(key).filter(|node| !node.exists) {
            node.exists = true;
            node.uses = 1;
            self.set_disk(key, disk);
        }
    }

    fn set_disk(&mut self, key: &Key, disk: u64) {
        if let Some(node) = self.nodes.get_mut(key) {
            self.size = self.size + disk - node.disk;
            node.disk = disk;
        }
    }
}

impl Node {
    fn is_unsettled(&self, awaited: u64) -> bool {
        self.search == Search::Begun || self.placing > 0 && self.placed < awaited
    }

    /// What is told of it to a request that does not wait for more than that.
    fn known(&mut self, min_uses: u64, awaited: u64, now: i64) -> Known {
        if self.is_unsettled(awaited) {
            return Known::Unsettled;
        }
        if self.error != 0 {
            if self.valid >= now {
                return Known::Error(self.error);
            }
            self.error = 0;
            self.search = Search::Due;
            return Known::New;
        }
        match self.exists {
            false if self.uses < min_uses => Known::Scarce,
            exists => Known::Worth { exists },
        }
    }
}

/// A request's hold on a key. Dropped, it gives up what the request began to fetch.
pub struct Hold {
    pub zone: Arc<Zone>,
    pub key: Key,
    /// The file, where it was open when the request came.
    pub kept: Option<Arc<Opened>>,
    /// Of an answer of several kinds: the hold on its main key, so that who purges that sees that something is on its way.
    main: Option<Box<Hold>>,
    min_uses: u64,
    /// When it began, as the index counts: so purges know what was asked for after them.
    began: u64,
    /// So many answers were here as a whole when it began: it waits for their files, and not for those of later ones.
    awaited: u64,
    /// This request looks for the file.
    searching: bool,
    /// This request fetches the key, and until when others wait for that.
    updating: Option<u64>,
    /// All of the answer is here.
    placing: bool,
    /// A status to be answered with for a while in place of a file.
    pub error: Option<(u16, i64)>,
    done: bool,
}

impl Hold {
    /// What the index says of the key by now.
    pub fn look(&self, now: i64) -> Known {
        let mut index = self.zone.shared.lock();
        let expires = now.saturating_add_unsigned(self.zone.spec.inactive);
        index.touch(self.key, expires).known(self.min_uses, self.awaited, now)
    }

    /// Whether there may be a file that the index does not know of. Who is told that a search is due has begun it, and
    /// those who come meanwhile wait for its [end](Self::searched): so they get to the key in the order of their coming.
    pub fn search(&mut self) -> Search {
        if !self.zone.is_cold() {
            return Search::Over;
        }
        let mut index = self.zone.shared.lock();
        let Some(node) = index.nodes.get_mut(&self.key) else { return Search::Over };
        let found = node.search;
        if found == Search::Due {
            node.search = Search::Begun;
            self.searching = true;
        }
        found
    }

    /// The file that was looked for, if there is one.
    pub fn searched(&mut self, found: Option<&Opened>) {
        if !std::mem::take(&mut self.searching) {
            return;
        }
        let mut index = self.zone.shared.lock();
        if let Some(node) = index.nodes.get_mut(&self.key) {
            node.search = Search::Over;
        }
        if let Some(opened) = found {
            index.learn(&self.key, opened.disk);
        }
        drop(index);
        self.zone.shared.released(&self.key).notify_waiters();
    }

    /// Takes the key to fetch it, unless another request has it, or has it done. `looked` says that the file was looked
    /// for, which the index knows of.
    pub fn lock(&mut self, now_ms: u64, age: u64, looked: bool) -> Locked {
        let mut index = self.zone.shared.lock();
        let Some(node) = index.nodes.get_mut(&self.key) else { return Locked::Mine };
        if node.updating && node.locked_until > now_ms {
            return Locked::Until(node.locked_until);
        }
        if node.exists && !looked {
            return Locked::Stored;
        }
        node.updating = true;
        node.locked_until = now_ms + age;
        self.updating = Some(node.locked_until);
        Locked::Mine
    }

    /// Whether another request fetches the key, until when it has it.
    pub fn locked(&self, now_ms: u64) -> Option<u64> {
        let index = self.zone.shared.lock();
        let node = index.nodes.get(&self.key)?;
        (node.updating && node.locked_until > now_ms).then_some(node.locked_until)
    }

    /// Whether an answer is about to take its place that was here before this request, or the file is looked for.
    pub fn is_unsettled(&self) -> bool {
        self.zone.shared.lock().nodes.get(&self.key).is_some_and(|node| node.is_unsettled(self.awaited))
    }

    /// All of the answer is here: who asks from now on, after a client that got it, waits for its file.
    pub fn whole(&mut self) {
        if !self.placing
            && let Some(node) = self.zone.shared.lock().nodes.get_mut(&self.key)
        {
            node.placing += 1;
            self.placing = true;
        }
    }

    /// Takes a key whose file has expired; false where another request is at it.
    pub fn update(&mut self) -> bool {
        let mut index = self.zone.shared.lock();
        let Some(node) = index.nodes.get_mut(&self.key) else { return true };
        if node.updating {
            return false;
        }
        node.updating = true;
        self.updating = Some(node.locked_until);
        true
    }

    /// Waits until somebody gave the key back, or another that is told of with it.
    pub fn released(&self) -> Notified<'_> {
        self.zone.shared.released(&self.key).notified()
    }

    /// The file was opened: the index may not know of it yet, and it is kept open for those who come next.
    pub fn found(&self, opened: &Arc<Opened>) {
        if self.kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, opened)) {
            return;
        }
        let mut index = self.zone.shared.lock();
        index.learn(&self.key, opened.disk);
        let closed = index.keep(self.key, opened);
        drop(index);
        drop(closed);
    }

    /// The key has a new file.
    pub fn stored(mut self, stored: Stored) {
        self.done = true;
        let mut closed = None;
        let mut index = self.zone.shared.lock();
        if let Some(node) = index.nodes.get_mut(&self.key) {
            closed = self.count_down(node);
            node.error = 0;
            node.exists = true;
            node.asked_at = self.began;
            node.updating = false;
        }
        index.set_disk(&self.key, stored.disk);
        drop(index);
        drop(closed);
        self.zone.shared.released(&self.key).notify_waiters();
    }

    /// Ends the hold; the file that another is in the place of by now, or that was written to, to be closed without the
    /// lock.
    #[must_use]
    fn count_down(&self, node: &mut Node) -> Option<Arc<Opened>> {
        node.count = node.count.saturating_sub(1);
        if !self.placing {
            return None;
        }
        node.placing = node.placing.saturating_sub(1);
        node.placed += 1;
        node.file.take()
    }

    /// The key of one kind of the answer, where there are several.
    pub fn of_kind(self, key: Key, now: i64) -> Option<(Hold, Known)> {
        let (mut hold, known) = self.zone.hold(key, self.min_uses, now)?;
        hold.began = self.began;
        hold.main = Some(Box::new(self));
        Some((hold, known))
    }

    /// The key of the answer, whatever its kind.
    pub fn into_main(mut self) -> Self {
        self.main.take().map_or(self, |main| *main)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut index = self.zone.shared.lock();
        let Some(node) = index.nodes.get_mut(&self.key) else { return };
        let mut closed = self.count_down(node);
        if self.updating == Some(node.locked_until) {
            node.updating = false;
        }
        if self.searching {
            node.search = Search::Due;
        }
        if let Some((status, valid)) = self.error {
            node.error = status;
            node.valid = valid;
        } else if !node.exists && node.count == 0 && self.min_uses == 1 && node.error == 0 {
            closed = closed.or(index.remove(&self.key));
        }
        drop(index);
        drop(closed);
        if self.searching || self.updating.is_some() || self.placing {
            self.zone.shared.released(&self.key).notify_waiters();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::md5::Md5;

    pub(crate) fn spec(path: &str) -> Arc<Spec> {
        let pace = Pace { files: 100, sleep: 0, threshold: 1000 };
        Arc::new(Spec {
            module: "test",
            name: "z".into(),
            path: PathSpec { path: path.into(), levels: [0; 3], position: None },
            size: NODE * 4,
            use_temp_path: false,
            inactive: 10,
            max_size: None,
            min_free: 0,
            manager: pace,
            loader: pace,
            purger: None,
        })
    }

    fn zone() -> Arc<Zone> {
        Arc::new(Zone::open(&spec("/nowhere"), None, &Log::new("weir", vec![])).unwrap())
    }

    #[test]
    fn keys_are_worth_a_file_from_so_many_uses_on() {
        let zone = zone();
        let mut held = vec![];
        for expected in [Known::New, Known::Scarce, Known::Worth { exists: false }] {
            let (hold, known) = zone.hold([1; 16], 3, 100).unwrap();
            assert_eq!(known, expected);
            held.push(hold);
        }
        held.pop().unwrap().stored(Stored { id: 1, disk: 5 });
        drop(held);
        assert_eq!(zone.hold([1; 16], 9, 100).unwrap().1, Known::Worth { exists: true });
        assert_eq!(zone.shared.lock().size, 5);
    }

    #[test]
    fn one_request_looks_for_a_file_and_the_others_wait() {
        let zone = zone();
        let look = || zone.hold([1; 16], 1, 100).unwrap();
        let (mut first, mut second) = (look().0, look().0);
        assert_eq!((first.search(), second.search()), (Search::Due, Search::Begun));
        assert!(second.is_unsettled());
        assert_eq!(look().1, Known::Unsettled);
        // Who gives up leaves it to the next one.
        drop(first);
        assert_eq!((second.look(100), second.search()), (Known::Worth { exists: false }, Search::Due));
        let (mut third, known) = look();
        assert_eq!(known, Known::Unsettled);
        let mut released = Box::pin(third.released());
        let context = &mut Context::from_waker(Waker::noop());
        assert!(released.as_mut().poll(context).is_pending());
        second.searched(None);
        assert!(released.as_mut().poll(context).is_ready());
        drop(released);
        assert_eq!((third.look(100), third.search()), (Known::Worth { exists: false }, Search::Over));
        // Of a cache whose files are all known none is looked for.
        drop((second, third));
        zone.shared.cold.store(false, Ordering::Relaxed);
        let (mut next, known) = look();
        assert_eq!((known, next.search()), (Known::New, Search::Over));
    }

    #[test]
    fn one_request_fetches_and_the_others_wait() {
        let zone = zone();
        let (mut first, _) = zone.hold([1; 16], 1, 100).unwrap();
        let (mut second, _) = zone.hold([1; 16], 1, 100).unwrap();
        assert_eq!(first.lock(1000, 50, false), Locked::Mine);
        assert_eq!(second.lock(1000, 50, false), Locked::Until(1050));
        assert_eq!(second.locked(1049), Some(1050));
        // Who takes too long is overtaken, and does not take the lock away by giving up.
        assert_eq!(second.lock(1050, 50, false), Locked::Mine);
        drop(first);
        assert_eq!(second.locked(1051), Some(1100));
        drop(second);
        assert!(zone.shared.lock().nodes.is_empty());
    }

    #[test]
    fn what_was_fetched_meanwhile_is_not_fetched_again() {
        let zone = zone();
        let (mut first, _) = zone.hold([1; 16], 1, 100).unwrap();
        assert_eq!(first.lock(1000, 50, false), Locked::Mine);
        let (mut second, known) = zone.hold([1; 16], 1, 100).unwrap();
        assert_eq!(known, Known::Worth { exists: false });
        first.stored(Stored { id: 1, disk: 1 });
        assert_eq!(second.lock(1001, 50, false), Locked::Stored);
        // The file may have been taken away since.
        assert_eq!(second.lock(1001, 50, true), Locked::Mine);
    }

    #[test]
    fn what_is_here_as_a_whole_is_waited_for() {
        let zone = zone();
        let look = || zone.hold([1; 16], 1, 100).unwrap();
        let (mut first, mut second) = (look().0, look().0);
        assert_eq!(look().1, Known::Worth { exists: false });
        for hold in [&mut first, &mut second] {
            hold.whole();
            hold.whole();
        }
        assert_eq!(look().1, Known::Unsettled);
        first.stored(Stored { id: 1, disk: 1 });
        assert_eq!((look().1, look().0.is_unsettled()), (Known::Unsettled, true));
        // Its file did not come about.
        drop(second);
        assert_eq!((look().1, look().0.is_unsettled()), (Known::Worth { exists: true }, false));
    }

    #[test]
    fn what_comes_later_is_not_waited_for() {
        let zone = zone();
        let look = || zone.hold([1; 16], 1, 100).unwrap();
        let (mut first, mut second) = (look().0, look().0);
        first.whole();
        let (waits, known) = look();
        second.whole();
        assert_eq!((known, waits.is_unsettled()), (Known::Unsettled, true));
        first.stored(Stored { id: 1, disk: 1 });
        assert_eq!((waits.is_unsettled(), waits.look(100)), (false, Known::Worth { exists: true }));
    }

    #[test]
    fn who_waits_for_a_key_is_not_told_of_others() {
        let zone = zone();
        let holds = [1, 2].map(|n| zone.hold([n; 16], 1, 100).unwrap().0);
        let [mut first, mut second] = holds.each_ref().map(|hold| Box::pin(hold.released()));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_pending());
        let (mut third, _) = zone.hold([2; 16], 1, 100).unwrap();
        assert_eq!(third.lock(1000, 50, false), Locked::Mine);
        drop(third);
        assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_ready());
    }

    #[test]
    fn files_stay_open_until_others_take_their_place() {
        let folder = std::env::temp_dir().join(format!("weir-cache-kept-{}", std::process::id()));
        let path = folder.join("name").to_string_lossy().into_owned();
        let header = Header { head_start: head_start(0) as u16, ..Header::default() };
        let header = Header { body_start: header.head_start, ..header };
        let made = beside(&path).unwrap();
        std::io::Write::write_all(&mut &made.file, &header.write(b"", b"")).unwrap();
        place(&made, &path).unwrap();
        let file = Arc::new(open(&path, b"", 0, crate::disk::Caller::Pool).unwrap());
        std::fs::remove_dir_all(folder).unwrap();

        let zone = Arc::new(
            Zone::open(
                &Arc::new(Spec { size: NODE * 1000, ..(*spec("/nowhere")).clone() }),
                None,
                &Log::new("weir", vec![]),
            )
            .unwrap(),
        );
        let key = |n: usize| Md5::of(&n.to_ne_bytes());
        let hold = |n| zone.hold(key(n), 1, 100).unwrap().0;
        let kept = |n| hold(n).kept.is_some();
        hold(0).found(&file);
        assert!(kept(0) && !kept(1));
        // It is about to be replaced, and is.
        let (mut renews, mut fetches) = (hold(0), hold(0));
        renews.whole();
        drop(renews);
        assert!(!kept(0));
        hold(0).found(&file);
        fetches.whole();
        fetches.stored(Stored { id: 1, disk: 1 });
        assert!(!kept(0));
        // There is room for so many.
        (1..=KEPT + 1).for_each(|n| hold(n).found(&file));
        assert_eq!(
            (1..=KEPT + 1).map(kept).collect::<Vec<_>>(),
            (1..=KEPT + 1).map(|n| n > 1).collect::<Vec<_>>()
        );
        zone.shared.close_kept();
        assert!((1..=KEPT + 1).all(|n| !kept(n)));
        assert_eq!(Arc::strong_count(&file), 1);
    }

    #[test]
    fn errors_are_answered_for_a_while() {
        let zone = zone();
        let (mut hold, _) = zone.hold([1; 16], 1, 100).unwrap();
        hold.error = Some((502, 105));
        drop(hold);
        assert_eq!(zone.hold([1; 16], 1, 105).unwrap().1, Known::Error(502));
        assert_eq!(zone.hold([1; 16], 1, 106).unwrap().1, Known::New);
    }

    #[test]
    fn the_index_is_bounded() {
        let zone = zone();
        let held: Vec<_> = (0..4).filter_map(|n| zone.hold([n; 16], 1, 100)).collect();
        assert_eq!(held.len(), 4);
        // All are in use.
        assert!(zone.hold([9; 16], 1, 100).is_none());
        held.into_iter().for_each(|(hold, _)| hold.stored(Stored { id: 1, disk: 1 }));
        assert!(zone.hold([9; 16], 1, 100).is_some());
        assert!(!zone.shared.lock().nodes.contains_key(&[0; 16]), "the oldest one made room");
    }

    #[test]
    fn a_reload_keeps_what_is_known_but_not_elsewhere() {
        let (zone, log) = (zone(), Log::new("weir", vec![]));
        zone.hold([1; 16], 1, 100).unwrap().0.stored(Stored { id: 1, disk: 1 });
        let next = Arc::new(Zone::open(&zone.spec, Some(&zone), &log).unwrap());
        assert_eq!(next.hold([1; 16], 1, 100).unwrap().1, Known::Worth { exists: true });
        let elsewhere = Zone::open(&spec("/elsewhere"), Some(&zone), &log).err().unwrap();
        assert_eq!(
            elsewhere,
            "cache \"z\" uses the \"/elsewhere\" cache path while previously it used the \"/nowhere\" cache path"
        );
    }
}
