//! Purging: answers that are not to be used any more (`…_cache_purge`), by their whole keys or by how keys begin.
//!
//! Keys are only in the files. So what begins in some way is remembered, and a file is held against that when it is opened;
//! meanwhile the purger, where there is one, looks through all files. Once nobody can come to such a file any more, the
//! purge is forgotten.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use weir_syntax::Level;

use super::{Key, Pace, Shared, Spec, Zone, file};
use crate::disk::Caller;
use crate::md5::Md5;
use crate::timer::Clock;

/// Purges that are remembered. Beyond that the two oldest become one, of all that both of them say.
const MOST: usize = 1024;
/// Seconds in which an answer that was asked for before may still come.
const COMING: i64 = 60;
/// Milliseconds between two looks of a purger where nothing is to be done.
const IDLE: u64 = 1_000;

#[derive(Debug)]
struct Purge {
    /// Where keys begin so, or are so as a whole.
    text: Box<[u8]>,
    whole: bool,
    /// Answers that came later are not meant,
    at: i64,
    /// nor, of those of the same second, what was asked for later, as the index counts.
    uses: u64,
}

impl Purge {
    fn is_of(&self, key: &[u8], date: i64, asked_at: u64) -> bool {
        (date, asked_at) <= (self.at, self.uses)
            && if self.whole { *key == *self.text } else { key.starts_with(&self.text) }
    }
}

/// What is remembered of a cache's purges.
#[derive(Debug, Default)]
pub(super) struct Purges {
    list: Mutex<Vec<Purge>>,
    count: AtomicUsize,
    /// A thread looks through the files.
    purger: AtomicBool,
}

impl Purges {
    fn lock(&self) -> MutexGuard<'_, Vec<Purge>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn add(&self, purge: Purge) {
        let mut list = self.lock();
        // The same once more, later.
        list.retain(|known| known.text != purge.text || known.whole != purge.whole);
        list.push(purge);
        if list.len() > MOST {
            let oldest = list.remove(0);
            let next = &mut list[0];
            let same = oldest.text.iter().zip(&next.text).take_while(|(a, b)| a == b).count();
            let (at, uses) = (next.at, next.uses).max((oldest.at, oldest.uses));
            *next = Purge { text: oldest.text[..same].into(), whole: false, at, uses };
        }
        self.count.store(list.len(), Ordering::Relaxed);
    }

    fn is_purged(&self, key: &[u8], date: i64, asked_at: u64) -> bool {
        self.is_any() && self.lock().iter().any(|purge| purge.is_of(key, date, asked_at))
    }

    /// Forgets those of before that time.
    fn forget(&self, before: i64) {
        if self.is_any() {
            let mut list = self.lock();
            list.retain(|purge| purge.at >= before);
            self.count.store(list.len(), Ordering::Relaxed);
        }
    }

    /// Forgets those that are so old that their files are gone because nobody asked for them.
    pub(super) fn expire(&self, spec: &Spec, now: i64) {
        self.forget(now.saturating_sub_unsigned(spec.inactive.saturating_mul(2)).saturating_sub(2 * COMING));
    }
}

impl Zone {
    /// Has all answers not be used any more that came so far and whose keys begin so.
    pub fn purge_all(&self, start: &[u8], now: i64) {
        let uses = self.shared.lock().uses;
        self.shared.purges.add(Purge { text: start.into(), whole: false, at: now, uses });
    }

    /// Removes the answer of a key; false where there was none. It touches the disk.
    pub fn purge(&self, key: &[u8], now: i64) -> bool {
        let id = Md5::of(key);
        let path = file::path(&self.spec.path, &id);
        let opened = file::open(&path, key, crc32fast::hash(key), Caller::Pool).ok();
        let there = opened.as_ref().is_some_and(|opened| !self.is_purged(&id, key, opened.header.date));
        let (error, coming, uses) = {
            let mut index = self.shared.lock();
            let uses = index.uses;
            index.nodes.get_mut(&id).map_or((false, false, uses), |node| {
                // Whoever holds it may be fetching it, with `…_cache_lock` or without.
                (std::mem::take(&mut node.error) != 0, node.count > 0, uses)
            })
        };
        // Others of the key have files of their own, by what they vary by; and one may be on its way.
        if coming || opened.is_some_and(|opened| !opened.header.vary.is_empty()) {
            self.shared.purges.add(Purge { text: key.into(), whole: true, at: now, uses });
        }
        if there {
            remove(&self.shared, &path, &id);
        }
        there || error
    }

    fn is_purged(&self, id: &Key, key: &[u8], date: i64) -> bool {
        self.shared.purges.is_any() && {
            let asked_at = self.shared.lock().nodes.get(id).map_or(0, |node| node.asked_at);
            self.shared.purges.is_purged(key, date, asked_at)
        }
    }

    /// Whether the file of an answer that came then was purged; it is gone then. It touches the disk.
    pub fn is_gone(&self, id: &Key, key: &[u8], date: i64) -> bool {
        let purged = self.is_purged(id, key, date);
        if purged {
            remove(&self.shared, &file::path(&self.spec.path, id), id);
        }
        purged
    }
}

/// Removes a file, whoever reads it.
fn remove(shared: &Shared, path: &str, id: &Key) {
    let mut closed = None;
    let mut index = shared.lock();
    if let Some(node) = index.nodes.get_mut(id) {
        // Before the file goes: of one that is stored from now on the index is to know.
        node.count += 1;
        node.exists = false;
        closed = node.file.take();
    }
    index.set_disk(id, 0);
    drop(index);
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        shared.log.write_error(Level::Crit, &error, format_args!("unlink() \"{path}\" failed"));
    }
    let mut index = shared.lock();
    if let Some(node) = index.nodes.get_mut(id) {
        node.count = node.count.saturating_sub(1);
        if node.count == 0 && !node.exists && node.error == 0 {
            closed = closed.or(index.remove(id));
        }
    }
    drop(index);
    drop(closed);
}

/// Starts the purger of a cache where there is to be one.
pub(super) fn start(shared: &Arc<Shared>, spec: &Spec) {
    if spec.purger.is_none() || shared.purges.purger.swap(true, Ordering::Relaxed) {
        return;
    }
    let weak = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("cache purger".into());
    if let Err(error) = thread.spawn(move || purge(&weak)) {
        shared.purges.purger.store(false, Ordering::Relaxed);
        shared.log.write_error(Level::Alert, &error, "starting the cache purger failed");
    }
}

/// A look through all files, and how far it is.
struct Round {
    next: u64,
    end: u64,
    /// When it began.
    at: i64,
}

fn purge(weak: &Weak<Shared>) {
    let clock = Clock::new();
    let mut round = None;
    while let Some(shared) = weak.upgrade() {
        let spec = shared.spec();
        let Some(pace) = spec.purger else {
            shared.purges.purger.store(false, Ordering::Relaxed);
            return;
        };
        clock.refresh();
        let rest = match turn(&shared, &spec, pace, &mut round, &clock) {
            true => IDLE,
            false => pace.sleep,
        };
        drop(shared);
        std::thread::park_timeout(Duration::from_millis(rest));
    }
}

/// Looks at so many files; whether nothing more is to be done for now.
fn turn(shared: &Shared, spec: &Spec, pace: Pace, round: &mut Option<Round>, clock: &Clock) -> bool {
    if !shared.purges.is_any() {
        *round = None;
        return true;
    }
    let now = clock.unix_secs() as i64;
    let begun = round.get_or_insert_with(|| Round { next: 0, end: shared.lock().uses, at: now });
    let since = clock.now_ms();
    for _ in 0..pace.files.max(1) {
        // What is asked for meanwhile goes behind the end, and was looked at by who asked.
        let next = {
            let index = shared.lock();
            let next = index.by_use.range(begun.next..).next().filter(|(used, _)| **used <= begun.end);
            let asked_at = |id| index.nodes.get(id).map_or(0, |node| node.asked_at);
            next.map(|(used, id)| (*used, *id, asked_at(id)))
        };
        let Some((used, id, asked_at)) = next else {
            if !shared.cold.load(Ordering::Relaxed) {
                shared.purges.forget(begun.at - COMING);
            }
            *round = None;
            return true;
        };
        begun.next = used + 1;
        let path = file::path(&spec.path, &id);
        if let Ok((key, date)) = file::key_and_date(&path)
            && shared.purges.is_purged(&key, date, asked_at)
        {
            remove(shared, &path, &id);
        }
        if clock.refresh() - since >= pace.threshold {
            break;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::super::{Header, Known, Stored};
    use super::*;
    use crate::errorlog::Log;

    struct Folder(String);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weir-purge-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path.to_string_lossy().into_owned())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn zone(folder: &Folder) -> Arc<Zone> {
        Arc::new(Zone::open(&spec(&folder.0), None, &Log::new("weir", vec![])).unwrap())
    }

    fn store(zone: &Arc<Zone>, key: &str, date: i64) -> String {
        let start = file::head_start(key.len());
        let crc32 = crc32fast::hash(key.as_bytes());
        let header =
            Header { date, crc32, head_start: start as u16, body_start: start as u16, ..Header::default() };
        let id = Md5::of(key.as_bytes());
        let path = file::path(&zone.spec.path, &id);
        fs::write(&path, header.write(key.as_bytes(), b"")).unwrap();
        let (hold, _) = zone.hold(id, 1, date).unwrap();
        hold.stored(Stored { id: 1, disk: 100 });
        path
    }

    #[test]
    fn a_whole_key_is_purged_once() {
        let folder = Folder::new("whole");
        let zone = zone(&folder);
        let path = store(&zone, "/a", 100);
        let other = store(&zone, "/ab", 100);
        assert!(!zone.purge(b"/b", 100));
        assert!(zone.purge(b"/a", 100) && !fs::exists(&path).unwrap() && fs::exists(&other).unwrap());
        assert!(!zone.purge(b"/a", 100));
        assert_eq!(zone.shared.lock().size, 100);
        assert_eq!(zone.hold(Md5::of(b"/a"), 1, 100).unwrap().1, Known::New);
        // Nothing of it is remembered.
        assert_eq!(zone.shared.purges.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_on_its_way_is_purged_too() {
        let folder = Folder::new("coming");
        let zone = zone(&folder);
        let remembers = |key: &str| zone.is_purged(&Md5::of(key.as_bytes()), key.as_bytes(), 100);
        let (hold, _) = zone.hold(Md5::of(b"/a"), 1, 100).unwrap();
        assert!(!zone.purge(b"/a", 100) && remembers("/a"));
        drop(hold);
        // One of several kinds, whose key is another.
        let (hold, _) = zone.hold(Md5::of(b"/b"), 1, 100).unwrap();
        let (kind, _) = hold.of_kind([1; 16], 100).unwrap();
        assert!(!zone.purge(b"/b", 100) && remembers("/b"));
        drop(kind);
        assert!(!zone.purge(b"/c", 100) && !remembers("/c"));
        assert!(zone.shared.lock().nodes.is_empty());
    }

    #[test]
    fn what_begins_so_is_gone_when_it_is_asked_for() {
        let folder = Folder::new("start");
        let zone = zone(&folder);
        let old = store(&zone, "/a/1", 100);
        zone.purge_all(b"/a/", 100);
        let new = store(&zone, "/a/2", 101);
        let at_once = store(&zone, "/a/4", 100);
        let gone = |key: &str, date| zone.is_gone(&Md5::of(key.as_bytes()), key.as_bytes(), date);
        assert!(!gone("/b", 100) && !gone("/a/2", 101) && fs::exists(&old).unwrap());
        assert!(!gone("/a/4", 100) && fs::exists(&at_once).unwrap());
        assert!(gone("/a/1", 100) && !fs::exists(&old).unwrap() && fs::exists(&new).unwrap());
        zone.shared.purges.expire(&zone.spec, 100 + 20 + 2 * COMING);
        assert!(gone("/a/3", 100));
        zone.shared.purges.expire(&zone.spec, 101 + 20 + 2 * COMING);
        assert!(!gone("/a/3", 100));
    }

    #[test]
    fn a_purger_looks_through_all_files() {
        let folder = Folder::new("purger");
        let zone = zone(&folder);
        let files = ["/a/1", "/b/1", "/a/2"].map(|key| store(&zone, key, 100));
        let exist = || files.each_ref().map(|path| fs::exists(path).unwrap());
        let clock = Clock::fixed(200_000);
        let pace = Pace { files: 2, sleep: 0, threshold: 1000 };
        let mut round = None;
        assert!(turn(&zone.shared, &zone.spec, pace, &mut round, &clock));
        zone.purge_all(b"/a/", 100);
        assert!(!turn(&zone.shared, &zone.spec, pace, &mut round, &clock));
        assert_eq!(exist(), [false, true, true]);
        assert!(turn(&zone.shared, &zone.spec, pace, &mut round, &clock));
        assert_eq!(exist(), [false, true, false]);
        // Files of which nothing is known yet may be meant too.
        let purged = || zone.is_purged(&Md5::of(b"/a/9"), b"/a/9", 100);
        assert!(zone.is_cold() && purged());
        zone.shared.cold.store(false, Ordering::Relaxed);
        while !turn(&zone.shared, &zone.spec, pace, &mut round, &clock) {}
        assert!(!purged());
    }

    #[test]
    fn purges_are_bounded_and_say_rather_more_than_less() {
        let purges = Purges::default();
        for n in 0..=MOST {
            purges.add(Purge {
                text: format!("/a/{n}/").into_bytes().into(),
                whole: n == 0,
                at: 100,
                uses: 0,
            });
        }
        assert_eq!(purges.count.load(Ordering::Relaxed), MOST);
        for key in ["/a/0/", "/a/1/x", "/a/1024/x"] {
            assert!(purges.is_purged(key.as_bytes(), 100, 0), "{key}");
        }
        assert!(!purges.is_purged(b"/b", 100, 0));
    }
}
