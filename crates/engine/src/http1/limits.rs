//! How large a request's head may be, and whether it still is not.

/// What the directives of the server allow a head to be. nginx takes them from the default server of the address (or the one that
/// SNI chose), since they are needed before `Host` is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `client_header_buffer_size`, in bytes: what is read into first.
    pub header_buffer: usize,
    /// `large_client_header_buffers`: how many.
    pub large_buffers: usize,
    /// `large_client_header_buffers`: the size of each, in bytes; no line may be longer.
    pub large_buffer: usize,
    /// `max_headers`: header lines, ignored ones not counted.
    pub max_headers: usize,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `ignore_invalid_headers`: lines with odd names are left out rather than passed on.
    pub ignore_invalid_headers: bool,
    /// `underscores_in_headers`: `_` is no odd character.
    pub underscores_in_headers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_buffer: 1024,
            large_buffers: 4,
            large_buffer: 8192,
            max_headers: 1000,
            merge_slashes: true,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
        }
    }
}

/// The buffers nginx would have filled by now: a head is too large when its lines, none of them split over two
/// buffers, do not fit `client_header_buffer_size` and `large_client_header_buffers`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    /// Size of the buffer in use; 0 before the first.
    buffer: usize,
    /// Where the line that is being read starts in it.
    used: usize,
    large: usize,
}

impl Room {
    /// Blank lines before a request line take room too, but are forgotten when they have filled the buffer.
    pub(crate) fn open(&mut self, blank: usize, limits: &Limits) {
        self.buffer = limits.header_buffer.max(1);
        self.used = (self.used + blank) % self.buffer;
    }

    /// Makes room for a line of `len` bytes so far; false if there is none.
    #[inline]
    pub(crate) fn take(&mut self, len: usize, complete: bool, limits: &Limits) -> bool {
        if complete && len <= self.left() {
            self.used += len;
            return true;
        }
        self.grow(len, complete, limits)
    }

    /// What is left of the buffer in use for the line that is being read.
    pub(crate) fn left(&self) -> usize {
        self.buffer - self.used
    }

    #[cold]
    fn grow(&mut self, len: usize, complete: bool, limits: &Limits) -> bool {
        loop {
            let left = self.left();
            if len < left || (complete && len == left) {
                if complete {
                    self.used += len;
                }
                return true;
            }
            if (left > 0 && left >= limits.large_buffer) || self.large >= limits.large_buffers {
                return false;
            }
            self.large += 1;
            self.buffer = limits.large_buffer.max(1);
            self.used = 0;
        }
    }
}
