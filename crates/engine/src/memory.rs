//! Memory that many clients at a time have left: the C library keeps what it gets back, in pieces between what is in use,
//! until it is told that the system may have it.
#![allow(unsafe_code)]

/// Bytes given back that are worth it: to look through all that is free costs milliseconds.
const WORTH: usize = 16 << 20;
/// Bytes given back in one turn that mean that there is still more to come, and to be used again.
const BUSY: usize = 1 << 20;
/// Turns without that.
const CALM: u32 = 5;

/// What was given back since the system had it last.
#[derive(Default)]
pub struct Ebb {
    bytes: usize,
    calm: u32,
}

impl Ebb {
    /// Takes what was given back in a turn; says whether the system is to have it.
    pub fn is_due(&mut self, given_back: usize) -> bool {
        self.bytes = self.bytes.saturating_add(given_back);
        self.calm = if given_back < BUSY { self.calm.saturating_add(1) } else { 0 };
        let due = self.bytes >= WORTH && self.calm >= CALM;
        if due {
            self.bytes = 0;
        }
        due
    }
}

/// Gives the system what is free. Whoever needs memory meanwhile may wait for that.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number only, and leaves what is in use alone.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given_back: &[usize], due: &[usize]) {
        let mut ebb = Ebb::default();
        let turns = given_back.iter().enumerate().filter(|(_, bytes)| ebb.is_due(**bytes));
        assert_eq!(turns.map(|(turn, _)| turn).collect::<Vec<_>>(), due);
    }

    #[test]
    fn memory_is_given_when_it_is_much_and_nobody_wants_it_back() {
        const MUCH: usize = WORTH;
        check(&[0; 20], &[]);
        check(&[MUCH, 0, 0, 0, 0, 0, 0, 0], &[5]);
        check(&[MUCH, 0, 0, 0, 0, BUSY, 0, 0, 0, 0, 0, 0], &[10]);
        check(&[MUCH, 0, 0, 0, 0, BUSY - 1, 0, 0, MUCH, 0, 0, 0, 0, 0], &[5, 13]);
        check(&[MUCH - 1, 0, 0, 0, 0, 0, 0, 1], &[7]);
        check(&[BUSY - 1; 30], &[16]);
    }

    #[test]
    fn what_is_free_between_what_is_in_use_is_the_systems_again() {
        const SIZE: usize = 64 << 10;
        let resident = || {
            let about = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = about.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.split_ascii_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
        };
        let all: Vec<Vec<u8>> = (0..1001).map(|_| vec![1; SIZE]).collect();
        let all: Vec<_> = all.into_iter().step_by(2).collect();
        let before = resident();
        trim();
        assert!(cfg!(not(target_env = "gnu")) || resident() + 200 * SIZE < before, "{before}");
        assert!(all.iter().all(|bytes| bytes.iter().all(|byte| *byte == 1)));
    }
}
