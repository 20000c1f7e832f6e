//! The cache manager: learns of the files that lie there when a cache is opened, and removes those that nobody asked for in a
//! while or that are too many. A thread of its own for each cache, which ends with it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use weir_syntax::Level;

use super::{Key, Shared, Spec, file};
use crate::timer::Clock;

/// Milliseconds between two looks where nothing is to be done.
const IDLE: u64 = 10_000;
/// Milliseconds before the files are looked through: the first requests come first.
const LOADS_AFTER: u64 = 60_000;
/// Milliseconds between two looks while files come at the loader's pace.
const LOOKS_AMID: u64 = 1_000;

pub(super) fn start(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("cache manager".into());
    if let Err(error) = thread.spawn(move || manage(&weak)) {
        shared.managed.store(false, Ordering::Relaxed);
        shared.log.write_error(Level::Alert, &error, "starting the cache manager failed");
    }
}

fn manage(weak: &Weak<Shared>) {
    let clock = Clock::new();
    let mut loads_at = clock.refresh() + LOADS_AFTER;
    let mut closes_at = 0;
    while let Some(shared) = weak.upgrade() {
        if shared.cold.load(Ordering::Relaxed) && clock.refresh() >= loads_at {
            drop(shared);
            load(weak, &clock);
            loads_at = u64::MAX;
            continue;
        }
        let next = look_after(&shared, &shared.spec(), &clock);
        if clock.now_ms() >= closes_at {
            shared.close_kept();
            closes_at = clock.now_ms() + IDLE;
        }
        drop(shared);
        let until_load = loads_at.saturating_sub(clock.refresh()).max(1);
        std::thread::park_timeout(Duration::from_millis(next.min(until_load)));
    }
}

/// Removes what is to be removed or forgotten; how long to wait then, in milliseconds.
fn look_after(shared: &Shared, spec: &Spec, clock: &Clock) -> u64 {
    let next = turn(shared, spec, clock);
    shared.purges.expire(spec, clock.unix_secs() as i64);
    next
}

/// How many files were seen to, and since when.
struct Batch {
    files: u64,
    since: u64,
}

impl Batch {
    fn new(clock: &Clock) -> Self {
        Self { files: 0, since: clock.refresh() }
    }

    fn is_over(&mut self, pace: super::Pace, clock: &Clock) -> bool {
        self.files += 1;
        self.files >= pace.files || clock.refresh() - self.since >= pace.threshold
    }
}

/// Removes files that are to be removed; how long to wait then, in milliseconds.
fn turn(shared: &Shared, spec: &Spec, clock: &Clock) -> u64 {
    let mut batch = Batch::new(clock);
    loop {
        clock.refresh();
        let now = clock.unix_secs() as i64;
        match next_expired(shared, spec, now) {
            Oldest::Stays(left) => break wait(shared, spec, clock, &mut batch).unwrap_or(left),
            Oldest::Held => {}
            Oldest::Goes(key) => delete(shared, spec, &key),
        }
        if batch.is_over(spec.manager, clock) {
            break spec.manager.sleep;
        }
    }
}

/// Makes room; `None` where there was enough of it.
fn wait(shared: &Shared, spec: &Spec, clock: &Clock, batch: &mut Batch) -> Option<u64> {
    loop {
        let (size, count, watermark) = {
            let index = shared.lock();
            (index.size, index.nodes.len(), index.watermark)
        };
        let fits = spec.max_size.is_none_or(|most| size < most) && count < watermark;
        if fits && (spec.min_free == 0 || free(&spec.path.path) > spec.min_free) {
            return None;
        }
        if !remove_oldest(shared, spec) {
            return Some(1000);
        }
        if batch.is_over(spec.manager, clock) {
            return Some(spec.manager.sleep);
        }
    }
}

fn free(path: &str) -> u64 {
    // Of a folder that is not there nothing is known, and nothing is to be removed.
    statvfs(path).map_or(u64::MAX, |about| about.blocks_available() * about.fragment_size())
}

enum Oldest {
    /// For so many milliseconds.
    Stays(u64),
    /// Somebody has been at it for all that time; it counts as used now.
    Held,
    Goes(Key),
}

fn next_expired(shared: &Shared, spec: &Spec, now: i64) -> Oldest {
    let mut index = shared.lock();
    let Some((_, &key)) = index.by_use.first_key_value() else { return Oldest::Stays(IDLE) };
    let Some(node) = index.nodes.get(&key) else { return Oldest::Stays(IDLE) };
    if node.expires > now {
        return Oldest::Stays(((node.expires - now) as u64).saturating_mul(1000).min(IDLE));
    }
    if node.count > 0 {
        index.touch(key, now.saturating_add_unsigned(spec.inactive));
        return Oldest::Held;
    }
    Oldest::Goes(key)
}

/// Removes the file not asked for in the longest time, for want of room. False where all of them are in use.
pub(super) fn remove_oldest(shared: &Shared, spec: &Spec) -> bool {
    const TRIES: usize = 20;
    let index = shared.lock();
    let mut oldest = index.by_use.values().take(TRIES);
    let Some(key) = oldest.find(|key| index.nodes.get(*key).is_some_and(|node| node.count == 0)).copied()
    else {
        return false;
    };
    drop(index);
    delete(shared, spec, &key);
    true
}

/// Removes a key and its file, unless somebody came for it meanwhile.
fn delete(shared: &Shared, spec: &Spec, key: &Key) {
    let mut index = shared.lock();
    let Some(node) = index.nodes.get_mut(key).filter(|node| node.count == 0) else { return };
    let mut closed = node.file.take();
    if node.exists {
        // Whoever comes now finds it held and no file.
        node.count += 1;
        node.exists = false;
        drop(index);
        let path = file::path(&spec.path, key);
        if let Err(error) = fs::remove_file(&path) {
            let message = format_args!("unlink() \"{path}\" failed");
            shared.log.write_error(Level::Crit, &error, message);
        }
        index = shared.lock();
        index.set_disk(key, 0);
        if let Some(node) = index.nodes.get_mut(key) {
            node.count = node.count.saturating_sub(1);
        }
    }
    if index.nodes.get(key).is_some_and(|node| node.count == 0 && !node.exists) {
        closed = closed.or(index.remove(key));
    }
    drop(index);
    drop(closed);
}

/// Learns of the files that are there.
fn load(weak: &Weak<Shared>, clock: &Clock) {
    let Some(shared) = weak.upgrade() else { return };
    let spec = shared.spec();
    drop(shared);
    let mut loading = Loading { weak, clock, batch: Batch::new(clock), due: 0 };
    if !loading.walk(Path::new(&*spec.path.path)) {
        return;
    }
    let Some(shared) = weak.upgrade() else { return };
    shared.cold.store(false, Ordering::Relaxed);
    let size = shared.lock().size as f64 / 1024.0 / 1024.0;
    let path = &spec.path.path;
    shared.log.write(Level::Notice, format_args!("http file cache: {path} {size:.3}M, bsize: 1"));
}

/// A walk through all files. It may take long, so limits are kept meanwhile, be they those of a reload.
struct Loading<'a> {
    weak: &'a Weak<Shared>,
    clock: &'a Clock,
    batch: Batch,
    /// When limits are looked at again, in milliseconds of the clock.
    due: u64,
}

impl Loading<'_> {
    /// False where the cache is gone.
    fn walk(&mut self, folder: &Path) -> bool {
        let Ok(entries) = fs::read_dir(folder) else { return true };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if name != OsStr::new("temp") && !self.walk(&path) {
                    return false;
                }
                continue;
            }
            let Some(shared) = self.weak.upgrade() else { return false };
            let (spec, clock) = (shared.spec(), self.clock);
            clock.refresh();
            add(&shared, &spec, &path, clock.unix_secs() as i64);
            if self.batch.is_over(spec.loader, clock) {
                if clock.refresh() >= self.due {
                    let next = look_after(&shared, &spec, clock);
                    self.due = clock.refresh() + next.min(LOOKS_AMID);
                }
                drop(shared);
                std::thread::park_timeout(Duration::from_millis(spec.loader.sleep));
                self.batch = Batch::new(clock);
            }
        }
        true
    }
}

/// Takes a file into the index; one that cannot be of this cache is removed.
fn add(shared: &Shared, spec: &Spec, path: &Path, now: i64) {
    let name = path.as_os_str().as_bytes();
    if file::is_temporary(name) {
        return;
    }
    let shown = path.display();
    let known = match (file::key_of(name), file::disk_of(path)) {
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return,
        (Some(key), Ok((length, disk))) if length >= file::FIXED as u64 => Some((key, disk)),
        (Some(_), Ok(_)) => {
            shared.log.write(Level::Crit, format_args!("cache file \"{shown}\" is too small"));
            None
        }
        (None, _) | (_, Err(_)) => None,
    };
    let mut index = shared.lock();
    let Some((key, disk)) =
        known.filter(|(key, _)| index.nodes.contains_key(key) || index.nodes.len() < index.most)
    else {
        drop(index);
        if let Err(error) = fs::remove_file(path) {
            shared.log.write_error(Level::Crit, &error, format_args!("unlink() \"{shown}\" failed"));
        }
        return;
    };
    let is_new = !index.nodes.contains_key(&key);
    let node = index.touch(key, now.saturating_add_unsigned(spec.inactive));
    if is_new {
        node.uses = 1;
        node.exists = true;
        index.set_disk(&key, disk);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::super::{Known, Zone};
    use super::*;
    use crate::errorlog::Log;

    fn folder(name: &str) -> String {
        let path = std::env::temp_dir().join(format!("weir-cache-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn files_that_lie_there_are_learnt_and_strange_ones_removed() {
        let path = folder("load");
        let spec = spec(&path);
        let zone = Arc::new(Zone::open(&spec, None, &Log::new("weir", vec![])).unwrap());
        let (known, small) = ([1; 16], [2; 16]);
        fs::write(file::path(&spec.path, &known), [0; 400]).unwrap();
        fs::write(file::path(&spec.path, &small), b"x").unwrap();
        fs::write(format!("{path}/strange"), b"x").unwrap();
        let temporary = format!("{}.0000000001", file::path(&spec.path, &known));
        fs::write(&temporary, b"x").unwrap();
        assert!(zone.is_cold());
        load(&Arc::downgrade(&zone.shared), &Clock::fixed(1000));
        assert!(!zone.is_cold());
        assert_eq!(zone.shared.lock().nodes.keys().collect::<Vec<_>>(), [&known]);
        assert!(zone.shared.lock().size >= 400);
        let mut left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [Path::new(&file::path(&spec.path, &known)), Path::new(&temporary)]);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn limits_are_kept_while_files_are_learnt() {
        let path = folder("amid");
        let spec = spec(&path);
        let zone = Arc::new(Zone::open(&spec, None, &Log::new("weir", vec![])).unwrap());
        for n in 0..3 {
            fs::write(file::path(&spec.path, &[n; 16]), [0; 400]).unwrap();
        }
        // Files come one by one, and the clock stands, so limits are looked at once: with the first.
        let loader = super::super::Pace { files: 1, ..spec.loader };
        let of_reload = Spec { max_size: Some(1), loader, ..Spec::clone(&spec) };
        *zone.shared.spec.lock().unwrap() = Arc::new(of_reload);
        load(&Arc::downgrade(&zone.shared), &Clock::fixed(1000));
        assert_eq!(zone.shared.lock().nodes.len(), 2);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn files_go_when_nobody_asks_for_them_or_there_are_too_many() {
        let path = folder("expire");
        let whole = spec(&path);
        let zone = Arc::new(Zone::open(&whole, None, &Log::new("weir", vec![])).unwrap());
        let clock = Clock::fixed(105_000);
        let exists = |n: u8| Path::new(&file::path(&whole.path, &[n; 16])).exists();
        let store = |n: u8, now: i64| {
            fs::write(file::path(&whole.path, &[n; 16]), [0; 100]).unwrap();
            let (hold, _) = zone.hold([n; 16], 1, now).unwrap();
            hold.stored(super::super::Stored { id: 1, disk: 100 });
        };
        store(1, 90);
        store(2, 98);
        let held = zone.hold([2; 16], 1, 98).unwrap();
        // Until the second 108 nothing else is to be done.
        assert_eq!(turn(&zone.shared, &whole, &clock), 3000);
        assert!(!exists(1) && exists(2));
        drop(held);
        store(3, 100);
        let small = Spec { max_size: Some(200), ..Spec::clone(&whole) };
        turn(&zone.shared, &small, &clock);
        assert!(!exists(2) && exists(3), "the older one goes");
        assert_eq!(zone.shared.lock().size, 100);
        assert_eq!(zone.hold([3; 16], 1, 100).unwrap().1, Known::Worth { exists: true });
        let full = Spec { min_free: u64::MAX - 1, ..Spec::clone(&whole) };
        turn(&zone.shared, &full, &clock);
        assert!(!exists(3));
        fs::remove_dir_all(path).unwrap();
    }
}
