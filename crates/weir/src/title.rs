//! The title of a process as `ps` shows it: scripts look for `nginx: master process`.
//!
//! The kernel shows the memory in which it placed the arguments, and when their last byte is overwritten goes on into
//! the environment behind them. A title is therefore written over both, through `/proc/self/mem`, which needs no
//! pointer. Whatever is wanted from arguments and environment must have been copied before.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Where the kernel placed arguments and environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    /// The end of the arguments, where the environment starts.
    arguments_end: u64,
    end: u64,
}

/// Shows `title` from now on, cut to the room there is. Only cosmetic: where the system does not allow it, nothing
/// happens.
pub fn set(title: &[u8]) {
    // The time zone comes from the environment, and is remembered from the first use.
    let _ = weir_engine::localtime::local(0);
    let Some(area) = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| parse(&stat)) else { return };
    let Ok(memory) = File::options().write(true).open("/proc/self/mem") else { return };
    // Failing half way would leave half a title, which is as harmless as none.
    let _ = memory.write_all_at(&fitted(title, area), area.start);
}

/// The title of the master: its command line behind a description, as in nginx.
pub fn master(program: &str, arguments: &[Vec<u8>]) -> Vec<u8> {
    let mut title = format!("{program}: master process").into_bytes();
    for argument in arguments {
        title.push(b' ');
        title.extend_from_slice(argument);
    }
    title
}

/// Fields 48, 49 and 51 of proc_pid_stat(5); the second field may contain anything, so counting starts behind it.
fn parse(stat: &str) -> Option<Area> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (start, arguments_end) = (field(48)?, field(49)?);
    let (environment, environment_end) = (field(50)?, field(51)?);
    let end = if environment == arguments_end { environment_end } else { arguments_end };
    (start > 0 && start < arguments_end && arguments_end <= end).then_some(Area { start, arguments_end, end })
}

/// What to write: the title, a zero, and zeros over what is left of the arguments.
fn fitted(title: &[u8], area: Area) -> Vec<u8> {
    let room = (area.end - area.start - 1) as usize;
    let arguments = (area.arguments_end - area.start) as usize;
    let mut bytes = title[..title.len().min(room)].to_vec();
    bytes.push(0);
    bytes.resize(bytes.len().max(arguments), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_found_behind_any_name() {
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[48 - 3] = "1000".into();
        fields[49 - 3] = "1020".into();
        fields[50 - 3] = "1020".into();
        fields[51 - 3] = "1100".into();
        let stat = format!("7 (a ) b) {}", fields.join(" "));
        assert_eq!(parse(&stat), Some(Area { start: 1000, arguments_end: 1020, end: 1100 }));
        assert_eq!(parse("7 (x) S 1"), None);
    }

    #[test]
    fn a_title_fits_and_covers_the_arguments() {
        let area = Area { start: 0, arguments_end: 6, end: 10 };
        assert_eq!(fitted(b"ab", area), b"ab\0\0\0\0");
        assert_eq!(fitted(b"abcdefgh", area), b"abcdefgh\0");
        assert_eq!(fitted(b"abcdefghijkl", area), b"abcdefghi\0");
    }

    #[test]
    fn the_master_shows_its_command_line() {
        let arguments = [b"/usr/sbin/nginx".to_vec(), b"-g".to_vec(), b"daemon off;".to_vec()];
        let title = b"nginx: master process /usr/sbin/nginx -g daemon off;";
        assert_eq!(master("nginx", &arguments), title);
    }
}
