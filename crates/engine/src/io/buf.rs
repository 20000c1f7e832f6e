//! Per-thread buffers: one scratch for work that ends within a poll, and a pool for bytes that must outlive it.
//!
//! A connection that waits holds no buffer. What arrives is read into the thread's scratch and leaves it within the
//! same poll; only what could not be written (or parsed) yet is copied into a pooled [`Buf`], which goes back to the
//! pool of the thread that drops it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes of the thread's scratch: as much as one read takes at most.
pub const SCRATCH: usize = 64 * 1024;

/// Capacities that the pool keeps, and how many buffers of each: 1.5 MiB a thread at the very most.
const CLASSES: [(usize, usize); 4] = [(4 * 1024, 64), (16 * 1024, 16), (64 * 1024, 8), (256 * 1024, 2)];

thread_local! {
    static SCRATCH_BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static GIVEN_BACK: Cell<usize> = const { Cell::new(0) };
    static POOL: RefCell<[Vec<Vec<u8>>; CLASSES.len()]> =
        const { RefCell::new([Vec::new(), Vec::new(), Vec::new(), Vec::new()]) };
}

/// Bytes of buffers that this thread's pools had no place for, since this was asked last.
pub fn given_back() -> usize {
    GIVEN_BACK.take()
}

/// Lets go of a buffer that the pools have no place for.
#[cold]
fn give_back(bytes: usize) {
    GIVEN_BACK.set(GIVEN_BACK.get() + bytes);
}

/// Lends the thread's scratch ([`SCRATCH`] bytes, contents left over from earlier use) for the length of `work`.
///
/// A nested call gets a buffer of its own: correct, but it allocates.
pub fn scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH_BYTES.with(|cell| match cell.try_borrow_mut() {
        Ok(mut bytes) => {
            if bytes.is_empty() {
                bytes.resize(SCRATCH, 0);
            }
            work(&mut bytes)
        }
        Err(_) => work(&mut vec![0; SCRATCH]),
    })
}

/// A growable run of bytes with a read position, borrowed from the thread's pool.
///
/// ```text
/// [ consumed | unread          | spare          ]
///            ^start            ^len             ^capacity
/// ```
/// Dereferences to the unread part.
#[derive(Default)]
pub struct Buf {
    bytes: Vec<u8>,
    start: usize,
}

impl Buf {
    /// An empty buffer that owns no memory.
    pub const fn new() -> Self {
        Buf { bytes: Vec::new(), start: 0 }
    }

    /// A buffer with room for at least `capacity` bytes, reused where the pool has one of that size.
    pub fn with_capacity(capacity: usize) -> Self {
        let class = CLASSES.iter().position(|(size, _)| capacity <= *size);
        let bytes = match class {
            Some(class) => POOL
                .with_borrow_mut(|pool| pool[class].pop())
                .unwrap_or_else(|| Vec::with_capacity(CLASSES[class].0)),
            None => Vec::with_capacity(capacity),
        };
        Buf { bytes, start: 0 }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Buf::new();
        buf.extend(bytes);
        buf
    }

    /// Appends `more`; moves to a larger pooled buffer when the room is used up.
    pub fn extend(&mut self, more: &[u8]) {
        if more.is_empty() {
            return;
        }
        self.reserve(more.len());
        self.bytes.extend_from_slice(more);
    }

    /// Makes room for `additional` more bytes without writing any.
    pub fn reserve(&mut self, additional: usize) {
        if self.bytes.capacity() - self.bytes.len() >= additional {
            return;
        }
        let needed = self.len() + additional;
        if self.start > 0 && needed <= self.bytes.capacity() && self.start >= self.len() {
            // The unread part is the smaller one: moving it costs less than another buffer.
            self.bytes.drain(..self.start);
            self.start = 0;
            return;
        }
        let doubled = if self.bytes.capacity() == 0 { needed } else { needed.max(self.bytes.capacity() * 2) };
        let mut larger = Buf::with_capacity(doubled);
        larger.bytes.extend_from_slice(self);
        *self = larger;
    }

    /// Takes `n` bytes off the front; an emptied buffer can be filled from its start again.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start = (self.start + n).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets all bytes and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Keeps the first `n` unread bytes.
    pub fn truncate(&mut self, n: usize) {
        self.bytes.truncate(self.start + n);
    }

    /// Gives the memory back to the pool and leaves an empty buffer that owns none.
    pub fn release(&mut self) {
        if self.bytes.capacity() > 0 {
            *self = Buf::new();
        }
    }

    /// Bytes of memory that this buffer holds on to.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes as a vector to append to; what is appended is unread. Nothing before the end may be changed in
    /// length: use [`Buf::consume`], [`Buf::truncate`] and [`Buf::clear`] for that.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Lends `room` writable bytes after the unread ones to `fill`, which says how many it wrote.
    pub fn fill<E>(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.reserve(room);
        let end = self.bytes.len();
        self.bytes.resize(end + room, 0);
        let got = fill(&mut self.bytes[end..]);
        self.bytes.truncate(end + got.as_ref().map_or(0, |n| (*n).min(room)));
        got
    }
}

/// A fixed run of initialised bytes to read into, borrowed from the thread: held while data waits in it to be
/// written, given back whenever its holder waits for more.
pub struct Block(Box<[u8]>);

/// Sizes of blocks, and how many of each a thread keeps. The small one has room for a body of 64 KiB and its head, which
/// then are one read and one write.
const BLOCKS: [(usize, usize); 2] = [(68 * 1024, 8), (256 * 1024, 2)];

/// Large blocks that a thread has at most, 16 MiB: clients that take nothing may hold them, many at a time.
const LARGE: usize = 64;

thread_local! {
    static FREE_BLOCKS: RefCell<[Vec<Box<[u8]>>; BLOCKS.len()]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// Large blocks that there are, held or free.
    static LARGE_BLOCKS: Cell<usize> = const { Cell::new(0) };
}

impl Block {
    /// A block for messages, 68 KiB.
    pub fn small() -> Self {
        let kept = FREE_BLOCKS.with_borrow_mut(|free| free[0].pop());
        Self(kept.unwrap_or_else(|| vec![0; BLOCKS[0].0].into()))
    }

    /// A block for long bodies, 256 KiB; a small one where too many of those are held.
    pub fn large() -> Self {
        if let Some(kept) = FREE_BLOCKS.with_borrow_mut(|free| free[1].pop()) {
            return Self(kept);
        }
        match LARGE_BLOCKS.get() {
            LARGE.. => Self::small(),
            there => {
                LARGE_BLOCKS.set(there + 1);
                Self(vec![0; BLOCKS[1].0].into())
            }
        }
    }

    /// A block of these bytes, as long as they are.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        Self(parts.concat().into())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        let Some(class) = BLOCKS.iter().position(|(size, _)| *size == bytes.len()) else { return };
        // A thread that is being torn down has no list any more; the block is freed then.
        let _ = FREE_BLOCKS.try_with(|free| {
            let list = &mut free.borrow_mut()[class];
            match list.len() < BLOCKS[class].1 {
                true => list.push(bytes),
                false => {
                    give_back(bytes.len());
                    if class == 1 {
                        LARGE_BLOCKS.set(LARGE_BLOCKS.get().saturating_sub(1));
                    }
                }
            }
        });
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {})", self.len(), self.capacity())
    }
}

impl std::io::Write for Buf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.bytes.capacity() == 0 {
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        let Some(class) = CLASSES.iter().position(|(size, _)| bytes.capacity() == *size) else {
            return give_back(bytes.capacity());
        };
        bytes.clear();
        // While a thread ends, its pool may be gone already: the memory is then simply freed.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool[class].len() < CLASSES[class].1
            {
                pool[class].push(bytes);
            } else {
                give_back(bytes.capacity());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled() -> Vec<usize> {
        POOL.with_borrow(|pool| pool.iter().map(Vec::len).collect())
    }

    #[track_caller]
    fn check_class(wanted: usize, got: usize) {
        assert_eq!(Buf::with_capacity(wanted).capacity(), got, "with_capacity({wanted})");
    }

    #[test]
    fn capacities_are_classes_up_to_the_largest() {
        check_class(1, 4096);
        check_class(4096, 4096);
        check_class(4097, 16 * 1024);
        check_class(60_000, 64 * 1024);
        check_class(100_000, 256 * 1024);
        check_class(300_000, 300_000);
    }

    #[test]
    fn a_dropped_buffer_is_handed_out_again() {
        let mut first = Buf::copy_of(b"abc");
        first.consume(1);
        let address = first.bytes.as_ptr();
        drop(first);
        assert_eq!(pooled(), [1, 0, 0, 0]);
        let second = Buf::with_capacity(100);
        assert_eq!((second.bytes.as_ptr(), second.len()), (address, 0));
        assert_eq!(pooled(), [0, 0, 0, 0]);
    }

    #[test]
    fn retention_is_bounded_and_odd_sizes_are_not_kept() {
        let many: Vec<Buf> = (0..500).map(|_| Buf::with_capacity(1)).collect();
        drop(many);
        drop(Buf::with_capacity(1 << 20));
        assert_eq!(pooled(), [CLASSES[0].1, 0, 0, 0]);
        assert_eq!((given_back(), given_back()), ((500 - CLASSES[0].1) * CLASSES[0].0 + (1 << 20), 0));
        let blocks: Vec<Block> = (0..10).map(|_| Block::large()).collect();
        drop(blocks);
        assert_eq!(given_back(), (10 - BLOCKS[1].1) * BLOCKS[1].0);
    }

    #[test]
    fn large_blocks_are_bounded() {
        let sizes = |n: usize| {
            let blocks: Vec<Block> = (0..n).map(|_| Block::large()).collect();
            [0, 1].map(|class| blocks.iter().filter(|block| block.len() == BLOCKS[class].0).count())
        };
        for _ in 0..2 {
            assert_eq!(sizes(LARGE), [0, LARGE]);
            assert_eq!(sizes(LARGE + 20), [20, LARGE]);
        }
    }

    #[test]
    fn an_empty_buffer_owns_nothing() {
        let mut buf = Buf::new();
        buf.extend(b"");
        assert_eq!(buf.capacity(), 0);
        buf.extend(b"x");
        buf.release();
        assert_eq!(buf.capacity(), 0);
    }

    #[test]
    fn the_window_moves_and_growth_keeps_unread_bytes() {
        let mut buf = Buf::copy_of(b"hello world");
        buf.consume(6);
        assert_eq!(&*buf, b"world");
        let mut expected = b"world".to_vec();
        for _ in 0..3000 {
            buf.extend(b"0123456789");
            expected.extend_from_slice(b"0123456789");
        }
        assert_eq!(&*buf, &expected[..]);
        assert_eq!(buf.capacity(), 64 * 1024);
        buf.truncate(5);
        buf.tail().extend_from_slice(b"!");
        assert_eq!(&*buf, b"world!");
        buf.consume(6);
        assert_eq!((buf.len(), buf.start), (0, 0));
    }

    #[test]
    fn consumed_room_is_used_again_before_growing() {
        let mut buf = Buf::copy_of(&[b'a'; 4096]);
        buf.consume(4000);
        buf.extend(&[b'b'; 1000]);
        assert_eq!((buf.len(), buf.capacity()), (1096, 4096));
    }

    #[test]
    fn fill_keeps_only_what_was_written() {
        let mut buf = Buf::copy_of(b"ab");
        let got = buf.fill(100, |room| {
            room[..2].copy_from_slice(b"cd");
            Ok::<_, ()>(2)
        });
        assert_eq!((got, &*buf), (Ok(2), &b"abcd"[..]));
        assert_eq!((buf.fill(10, |_| Err(())), &*buf), (Err(()), &b"abcd"[..]));
    }

    #[test]
    fn scratch_nests_without_aliasing() {
        scratch(|outer| {
            outer[0] = 1;
            scratch(|inner| {
                inner[0] = 2;
                assert_eq!(inner.len(), SCRATCH);
            });
            assert_eq!(outer[0], 1);
        });
    }
}
