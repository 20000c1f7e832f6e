//! The tables of HPACK: the static one (RFC 7541 appendix A), and the dynamic one that either side has (section 2.3.2).

use std::collections::VecDeque;

pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// An entry of the static table, where there is one.
pub(crate) fn entry(index: usize) -> Option<(&'static [u8], &'static [u8])> {
    let (name, value) = STATIC.get(index.checked_sub(1)?)?;
    Some((name.as_bytes(), value.as_bytes()))
}

/// The index of the first entry of the static table with that name.
pub(super) fn find(name: &[u8]) -> Option<usize> {
    let mut at = slot(name);
    loop {
        let index = usize::from(SLOTS[at]);
        if index == 0 {
            return None;
        }
        if STATIC[index - 1].0.as_bytes() == name {
            return Some(index);
        }
        at = (at + 1) % SLOTS.len();
    }
}

/// Indexes of the static table, the first of each name, where `find` looks for it; 0 is nothing.
const SLOTS: [u8; 128] = {
    let mut slots = [0u8; 128];
    let mut index = 1;
    while index <= STATIC.len() {
        let name = STATIC[index - 1].0.as_bytes();
        if index == 1 || !same(name, STATIC[index - 2].0.as_bytes()) {
            let mut at = slot(name);
            while slots[at] != 0 {
                at = (at + 1) % slots.len();
            }
            slots[at] = index as u8;
        }
        index += 1;
    }
    slots
};

/// The same for a name that is in the table.
pub(super) const fn index(name: &str) -> usize {
    let mut index = 1;
    while !same(STATIC[index - 1].0.as_bytes(), name.as_bytes()) {
        index += 1;
    }
    index
}

const fn slot(name: &[u8]) -> usize {
    match name {
        [first, .., last] => (name.len() * 5 + *first as usize * 3 + *last as usize * 11) % 128,
        _ => 0,
    }
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Bytes that an entry counts besides its own (RFC 7541 section 4.1).
pub(super) const OVERHEAD: usize = 32;

/// Bytes that a table counts at most. Connections begin with that many, and neither side wants more.
pub(super) const MOST: usize = 4096;

/// The dynamic table. It has no memory before something is in it.
#[derive(Debug)]
pub(super) struct Table {
    /// Names and values, the oldest first, behind what is left of entries that are gone.
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u16,
    name: u16,
    value: u16,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, most: MOST }
    }

    /// The size that it may have.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The field that was added `age` insertions before the last.
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8])> {
        let newest = self.entries.len().checked_sub(1)?;
        let entry = self.entries.get(newest.checked_sub(age)?)?;
        let field =
            &self.bytes[usize::from(entry.at)..][..usize::from(entry.name) + usize::from(entry.value)];
        Some(field.split_at(usize::from(entry.name)))
    }

    pub(super) fn fits(&self, name: &[u8], value: &[u8]) -> bool {
        name.len() + value.len() + OVERHEAD <= self.most
    }

    /// Adds a field, for which the oldest make room. One that does not fit at all leaves the table empty.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(self.most.saturating_sub(size));
        if size > self.most {
            return;
        }
        self.reserve(size - OVERHEAD);
        let at = self.bytes.len() as u16;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_back(Entry { at, name: name.len() as u16, value: value.len() as u16 });
        self.size += size;
        debug_assert!(self.size <= self.most && self.bytes.len() <= 2 * MOST);
    }

    pub(super) fn resize(&mut self, most: usize) {
        debug_assert!(most <= MOST);
        self.most = most;
        self.evict(most);
    }

    fn evict(&mut self, size: usize) {
        while self.size > size {
            let Some(gone) = self.entries.pop_front() else { return };
            self.size -= usize::from(gone.name) + usize::from(gone.value) + OVERHEAD;
        }
    }

    /// Makes room for that many bytes: first takes away what is left of entries that are gone, where that is the larger part.
    fn reserve(&mut self, more: usize) {
        let gone = self.entries.front().map_or(self.bytes.len(), |entry| usize::from(entry.at));
        if self.bytes.len() + more > self.bytes.capacity() && gone >= self.bytes.len() - gone {
            self.bytes.drain(..gone);
            self.entries.iter_mut().for_each(|entry| entry.at -= gone as u16);
        }
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            // Twice what is needed, but never more than lets the larger part be gone.
            self.bytes.reserve_exact((2 * needed).min(2 * MOST) - self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_static_table_is_found_first() {
        for (name, _) in STATIC {
            let first = STATIC.iter().position(|entry| entry.0 == name).expect("it is there") + 1;
            assert_eq!(find(name.as_bytes()), Some(first), "{name}");
        }
        for name in ["", "a", "x-powered-by", "Date", "datf", "accept-", ":statu"] {
            assert_eq!(find(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn the_static_table_is_that_of_the_rfc() {
        let lines: String = STATIC.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        assert_eq!(crc32fast::hash(lines.as_bytes()), 0xe084_c671);
    }

    /// Sizes of entries, the newest first.
    fn sizes(table: &Table) -> Vec<usize> {
        (0..table.len())
            .map_while(|age| table.get(age))
            .map(|(name, value)| name.len() + value.len() + 32)
            .collect()
    }

    #[test]
    fn an_entry_may_be_as_large_as_the_table_and_no_larger() {
        let mut table = Table::new();
        table.insert(b"a", b"b");
        table.insert(b"n", &[b'x'; 4096 - 33]);
        assert_eq!((sizes(&table), table.size), (vec![4096], 4096));
        table.insert(b"a", b"b");
        assert_eq!((sizes(&table), table.size), (vec![34], 34));
        table.insert(b"n", &[b'x'; 4097 - 33]);
        assert_eq!((sizes(&table), table.size), (vec![], 0));
        table.insert(b"", b"");
        assert_eq!((sizes(&table), table.get(0)), (vec![32], Some((&b""[..], &b""[..]))));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut table = Table::new();
        table.resize(100);
        for name in [b"a", b"b", b"c"] {
            table.insert(name, b"");
        }
        assert_eq!((table.get(0), table.get(2)), (Some((&b"c"[..], &b""[..])), Some((&b"a"[..], &b""[..]))));
        table.insert(b"d", b"1");
        assert_eq!(
            (sizes(&table), table.size, table.get(1)),
            (vec![34, 33, 33], 100, Some((&b"c"[..], &b""[..])))
        );
        table.resize(66);
        assert_eq!(sizes(&table), [34]);
        table.resize(0);
        assert_eq!((table.len(), table.get(0), table.get(usize::MAX)), (0, None, None));
        table.insert(b"", b"");
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn its_memory_is_bounded_and_its_entries_stay() {
        let mut table = Table::new();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for turn in 0..5000usize {
            let value = vec![turn as u8; turn * 7919 % 701];
            table.insert(&turn.to_be_bytes(), &value);
            all.push(value);
            assert!(table.bytes.capacity() <= 2 * MOST && table.size <= MOST);
            for age in 0..table.len() {
                let before = turn - age;
                assert_eq!(table.get(age), Some((&before.to_be_bytes()[..], &all[before][..])));
            }
        }
    }
}
