use std::fs::File;

use weir_testkit::Folder;

use super::atoms::{Trouble, atom};
use super::*;
use crate::testing::check_conf;

#[test]
fn messages() {
    check_conf(
        "mp4_buffer_size 1k; mp4_max_buffer_size 2k; mp4_start_key_frame on; server { location / { mp4; } }",
        "",
    );
    for (conf, message) in [
        ("mp4;", "\"mp4\" directive is not allowed here"),
        ("mp4_buffer_size 1; mp4_buffer_size 1;", "\"mp4_buffer_size\" directive is duplicate"),
        ("mp4_max_buffer_size x;", "\"mp4_max_buffer_size\" directive invalid value"),
        (
            "mp4_start_key_frame 1;",
            "invalid value \"1\" in \"mp4_start_key_frame\" directive, it must be \"on\" or \"off\"",
        ),
    ] {
        check_conf(conf, message);
    }
}

#[test]
fn times() {
    for (text, expected) in [
        ("1", Some(1000)),
        ("1.5", Some(1500)),
        (".25", Some(250)),
        ("1.", Some(1000)),
        ("1.23456789012345678901234567890", Some(1234)),
        ("", None),
        ("-1", None),
        ("1.2.3", None),
        ("1x", None),
        ("99999999999999999999", None),
        ("9223372036854775", Some(9_223_372_036_854_775_000)),
        ("9223372036854776", None),
    ] {
        assert_eq!(milliseconds(text.as_bytes()), expected, "{text}");
    }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A file of one track: four seconds of a sample each, with as many bytes as its number, two in a chunk.
fn file() -> Vec<u8> {
    let mvhd = [numbers(&[0, 0, 0, 1000, 4000]), vec![0; 80]].concat();
    let tkhd = [numbers(&[0, 0, 0, 1, 0, 4000]), vec![0; 60]].concat();
    let mdhd = numbers(&[0, 0, 0, 10, 40, 0]);
    let tables = [
        atom(b"stts", &[&numbers(&[0, 1, 4, 10])]),
        atom(b"stss", &[&numbers(&[0, 2, 1, 3])]),
        atom(b"stsc", &[&numbers(&[0, 1, 1, 2, 1])]),
        atom(b"stsz", &[&numbers(&[0, 0, 4, 1, 2, 3, 4])]),
        atom(b"stco", &[&numbers(&[0, 2, 16, 19])]),
    ];
    let stbl = atom(b"stbl", &[&tables.concat()]);
    let mdia = atom(b"mdia", &[&atom(b"mdhd", &[&mdhd]), &atom(b"minf", &[&stbl])]);
    let trak = atom(b"trak", &[&atom(b"tkhd", &[&tkhd]), &mdia]);
    [atom(b"free", &[]), atom(b"mdat", &[b"1223334444"]), atom(b"moov", &[&atom(b"mvhd", &[&mvhd]), &trak])]
        .concat()
}

/// What is left of a file, as a file.
fn cut(bytes: &[u8], start: u64, length: u64) -> Result<Option<Vec<u8>>, Trouble> {
    thread_local! {
        static FOLDER: Folder = Folder::new(&[]);
    }
    let file = FOLDER.with(|folder| File::open(folder.write("a.mp4", bytes)).unwrap());
    let wanted = Wanted {
        name: "a.mp4".into(),
        end: bytes.len() as u64,
        start,
        length,
        most: 1 << 20,
        start_key_frame: false,
    };
    let cut = atoms::cut(&file, &wanted)?;
    Ok(cut.map(|cut| [&cut.head, &bytes[cut.offset as usize..][..cut.length as usize]].concat()))
}

#[test]
fn samples_between_two_times() {
    for (start, length, data) in [
        (0, 0, "1223334444"),
        (1000, 0, "223334444"),
        (1000, 2000, "22333"),
        (2500, 0, "3334444"),
        (3999, 9000, "4444"),
    ] {
        let left = cut(&file(), start, length).unwrap().unwrap();
        let mdat = left.windows(4).position(|name| name == b"mdat").unwrap();
        assert_eq!(&left[mdat + 4..], data.as_bytes(), "{start} {length}");
        // The first chunk is where the data is.
        let stco = left.windows(4).position(|name| name == b"stco").unwrap();
        assert_eq!(left[stco + 12..stco + 16], (mdat as u32 + 4).to_be_bytes(), "{start} {length}");
    }
}

#[test]
fn what_is_broken_is_refused() {
    let whole = file();
    let told = |bytes: &[u8]| cut(bytes, 1000, 2000).err().map_or(String::new(), |trouble| trouble.message);
    assert_eq!(told(&whole), "");
    // As in nginx, what begins and ends in the midst of one chunk is none.
    let none = cut(&whole, 1000, 1000).err().map(|trouble| trouble.message);
    assert_eq!(none.as_deref(), Some("no data between start time and end time in \"a.mp4\""));
    assert_eq!(told(&whole[..30]), "\"a.mp4\" mp4 file truncated");
    assert_eq!(told(b"\0\0\0\x08free"), "no mp4 trak atoms were found in \"a.mp4\"");
    // Whatever any of its bytes and numbers are, it is cut or refused.
    for at in 0..whole.len() {
        for byte in [0, 0xff] {
            let mut broken = whole.clone();
            broken[at] = byte;
            let _ = cut(&broken, 1000, 2000);
            let end = (at + 4).min(broken.len());
            broken[at..end].fill(byte);
            let _ = cut(&broken, 1500, 0);
        }
        let _ = cut(&whole[..at], 1000, 0);
    }
}
