//! The atoms of a file: what of them is kept, and what is told of those that are wrong.
//!
//! Of a file only the heads of its atoms are read, and `moov` whole, up to a bound.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use weir_syntax::Level;

use super::track::{Chunk, Track};

/// What is asked of a file. Times are milliseconds.
pub(super) struct Wanted {
    pub name: String,
    /// The length of the file.
    pub end: u64,
    pub start: u64,
    /// 0 is up to the end.
    pub length: u64,
    /// Bytes that `moov` may have.
    pub most: u64,
    /// Begins at the key frame before the start, if need be.
    pub start_key_frame: bool,
}

/// A part of a file as a file of its own.
pub(super) struct Cut {
    /// All before the data.
    pub head: Vec<u8>,
    /// Where the data is in the file.
    pub offset: u64,
    pub length: u64,
}

/// Why there is no part.
#[derive(Debug)]
pub(super) struct Trouble {
    pub level: Level,
    pub error: Option<io::Error>,
    pub message: String,
}

/// How reading an atom went wrong.
pub(super) enum Stop {
    /// The track has nothing from the start on.
    Skip,
    Trouble(Trouble),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Wanted {
    /// `what in "name"`
    pub fn wrong(&self, what: &str) -> Trouble {
        self.trouble(format!("{what} in \"{}\"", self.name))
    }

    /// `"name" what`
    fn bad(&self, what: impl std::fmt::Display) -> Trouble {
        self.trouble(format!("\"{}\" {what}", self.name))
    }

    fn trouble(&self, message: String) -> Trouble {
        Trouble { level: Level::Error, error: None, message }
    }

    /// A time in units, from milliseconds.
    pub fn units(milliseconds: u64, timescale: u32) -> u64 {
        let units = u128::from(milliseconds) * u128::from(timescale) / 1000;
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// What is left of a duration from the start on, and of that up to the end; `None` where it is over before.
    fn cropped(&self, duration: u64, timescale: u32) -> Option<(u64, u64)> {
        let left = duration.checked_sub(Self::units(self.start, timescale))?;
        let most = if self.length > 0 { Self::units(self.length, timescale) } else { u64::MAX };
        Some((left, left.min(most)))
    }

    /// The same for a track, which is left out where nothing is left of it.
    fn cropped_track(&self, duration: u64, timescale: u32) -> Result<u64, Stop> {
        let (_, duration) =
            self.cropped(duration, timescale).filter(|(left, _)| *left > 0).ok_or(Stop::Skip)?;
        Ok(duration)
    }
}

pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Writes over a number that is there.
fn set(bytes: &mut [u8], at: usize, number: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + number.len()) {
        place.copy_from_slice(number);
    }
}

/// An atom of these data.
pub(super) fn atom(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![];
    put(name, parts, &mut out);
    out
}

/// Appends an atom.
pub(super) fn put(name: &[u8; 4], parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // Of a description that is bounded none is longer than 4 GiB.
    out.extend_from_slice(&((length + 8) as u32).to_be_bytes());
    out.extend_from_slice(name);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The head of an atom.
struct Head {
    name: [u8; 4],
    /// Its own bytes, and those of the whole atom.
    length: u64,
    size: u64,
}

/// Cuts the part out; `None` is the whole file as it is.
pub(super) fn cut(file: &File, wanted: &Wanted) -> Result<Option<Cut>, Trouble> {
    let mut reading = Reading { wanted, timescale: 0, mvhd: None, tracks: vec![] };
    let (mut ftyp, mut moov, mut mdat) = (None, false, None);
    let mut at = 0;
    while at < wanted.end {
        let Some(head) = wanted.head(|length, from| wanted.read(file, at + from, length), wanted.end - at)?
        else {
            break;
        };
        let (data, length) = (at + head.length, head.size - head.length);
        at += head.size;
        match &head.name {
            b"ftyp" => {
                if length > 1024 {
                    return Err(wanted.bad(format_args!("mp4 ftyp atom is too large:{length}")));
                }
                if ftyp.is_some() {
                    return Err(wanted.wrong("duplicate mp4 ftyp atom"));
                }
                ftyp = Some(atom(b"ftyp", &[&wanted.read(file, data, length)?]));
            }
            b"moov" => {
                if mdat.is_none() && wanted.start == 0 && wanted.length == 0 {
                    return Ok(None);
                }
                if moov {
                    return Err(wanted.wrong("duplicate mp4 moov atom"));
                }
                if length > wanted.most {
                    return Err(wanted.bad(format_args!(
                        "mp4 moov atom is too large:{length}, you may want to increase mp4_max_buffer_size"
                    )));
                }
                moov = true;
                reading.moov(&wanted.read(file, data, length)?)?;
                if mdat.is_some() {
                    break;
                }
            }
            b"mdat" => {
                if mdat.is_some() {
                    return Err(wanted.wrong("duplicate mp4 mdat atom"));
                }
                mdat = Some(at);
                if !reading.tracks.is_empty() {
                    break;
                }
            }
            _ => {}
        }
    }
    if reading.tracks.is_empty() {
        return Err(wanted.wrong("no mp4 trak atoms were found"));
    }
    let Some(mdat) = mdat else { return Err(wanted.wrong("no mp4 mdat atom was found")) };
    reading.put_together(ftyp.unwrap_or_default(), mdat).map(Some)
}

impl Wanted {
    fn read(&self, file: &File, at: u64, length: u64) -> Result<Vec<u8>, Trouble> {
        if at.checked_add(length).is_none_or(|end| end > self.end) {
            return Err(self.bad("mp4 file truncated"));
        }
        let mut bytes = vec![0; length as usize];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            Err(error) => {
                let message = format!("pread() \"{}\" failed", self.name);
                Err(Trouble { level: Level::Crit, error: Some(error), message })
            }
        }
    }

    /// Reads the head of an atom of which there are `left` bytes at most; `None` is the end of a list of atoms.
    fn head(
        &self,
        read: impl Fn(u64, u64) -> Result<Vec<u8>, Trouble>,
        left: u64,
    ) -> Result<Option<Head>, Trouble> {
        let size = u64::from(get32(&read(4, 0)?, 0));
        let (length, size) = match size {
            0 => return Ok(None),
            1 => (16, get64(&read(16, 0)?, 8)),
            size => (8, size),
        };
        if size < length {
            return Err(self.bad(format_args!("mp4 atom is too small:{size}")));
        }
        let mut name = [0; 4];
        name.copy_from_slice(&read(4, 4)?);
        if size > left {
            return Err(self.bad(format_args!("mp4 atom too large:{size}")));
        }
        Ok(Some(Head { name, length, size }))
    }

    /// Calls `each` for every atom among these bytes.
    fn each<E: From<Trouble>>(
        &self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8; 4], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let read = |length: u64, from: u64| {
                let part = rest.get(from as usize..(from + length) as usize);
                part.map(<[u8]>::to_vec).ok_or_else(|| self.bad("mp4 file truncated"))
            };
            let Some(head) = self.head(read, rest.len() as u64)? else { return Ok(()) };
            let (atom, behind) = rest.split_at(head.size as usize);
            each(&head.name, &atom[head.length as usize..])?;
            rest = behind;
        }
        Ok(())
    }
}

/// A file that is being read.
struct Reading<'w> {
    wanted: &'w Wanted,
    timescale: u32,
    mvhd: Option<Vec<u8>>,
    tracks: Vec<Track>,
}

/// Where the numbers of an atom stand that tells a duration, by its version.
struct Places {
    size: [usize; 2],
    timescale: [usize; 2],
    duration: [usize; 2],
}

const MVHD: Places = Places { size: [100, 112], timescale: [12, 20], duration: [16, 24] };
const TKHD: Places = Places { size: [84, 96], timescale: [0, 0], duration: [20, 28] };
const MDHD: Places = Places { size: [24, 36], timescale: [12, 20], duration: [16, 24] };

impl Reading<'_> {
    fn too_small(&self, name: &[u8; 4]) -> Trouble {
        self.wanted.bad(format_args!("mp4 {} atom too small", String::from_utf8_lossy(name)))
    }

    /// The version, as an index, the timescale and the duration that an atom tells.
    fn times(&self, name: &[u8; 4], data: &[u8], places: &Places) -> Result<(usize, u32, u64), Trouble> {
        let version = usize::from(data.first().is_some_and(|version| *version != 0));
        if data.len() < places.size[0] || data.len() < places.size[version] {
            return Err(self.too_small(name));
        }
        let at = places.duration[version];
        let duration = if version == 0 { u64::from(get32(data, at)) } else { get64(data, at) };
        Ok((version, get32(data, places.timescale[version]), duration))
    }

    fn moov(&mut self, data: &[u8]) -> Result<(), Trouble> {
        let wanted = self.wanted;
        wanted.each(data, |name, data| match name {
            b"mvhd" => self.mvhd(data),
            b"trak" => {
                let mut track = Track::default();
                match self.container(b"trak", data, &mut track) {
                    Ok(()) => self.tracks.push(track),
                    Err(Stop::Skip) => {}
                    Err(Stop::Trouble(trouble)) => return Err(trouble),
                }
                Ok(())
            }
            b"cmov" => Err(wanted.bad("mp4 compressed moov atom (cmov) is not supported")),
            _ => Ok(()),
        })
    }

    fn mvhd(&mut self, data: &[u8]) -> Result<(), Trouble> {
        if self.mvhd.is_some() {
            return Err(self.wanted.wrong("duplicate mp4 mvhd atom"));
        }
        let (version, timescale, duration) = self.times(b"mvhd", data, &MVHD)?;
        self.timescale = timescale;
        let Some((_, duration)) = self.wanted.cropped(duration, timescale) else {
            return Err(self.wanted.bad("mp4 start time exceeds file duration"));
        };
        let mut data = data.to_vec();
        set_duration(&mut data, version, MVHD.duration[version], duration);
        self.mvhd = Some(atom(b"mvhd", &[&data]));
        Ok(())
    }

    fn container(&self, name: &[u8; 4], data: &[u8], track: &mut Track) -> Result<(), Stop> {
        self.wanted.each(data, |inner, data| match (name, inner) {
            (b"trak", b"tkhd") => {
                let (version, _, duration) = self.times(inner, data, &TKHD)?;
                let duration = self.wanted.cropped_track(duration, self.timescale)?;
                let mut data = data.to_vec();
                set_duration(&mut data, version, TKHD.duration[version], duration);
                track.movie_duration = duration;
                self.keep(&mut track.tkhd, inner, &data)
            }
            (b"trak", b"mdia") | (b"mdia", b"minf") | (b"minf", b"stbl") => {
                if track.containers.contains(inner) {
                    return Err(self.duplicate(inner).into());
                }
                track.containers.push(*inner);
                self.container(inner, data, track)
            }
            (b"mdia", b"mdhd") => {
                let (version, timescale, duration) = self.times(inner, data, &MDHD)?;
                track.duration = self.wanted.cropped_track(duration, timescale)?;
                track.timescale = timescale;
                track.duration_at = (version, MDHD.duration[version]);
                self.keep(&mut track.mdhd, inner, data)
            }
            (b"mdia", b"hdlr") => self.keep(&mut track.hdlr, inner, data),
            (b"minf", b"vmhd" | b"smhd") => {
                if track.xmhd.is_some() {
                    return Err(self.wanted.wrong("duplicate mp4 vmhd/smhd atom").into());
                }
                self.keep(&mut track.xmhd, inner, data)
            }
            (b"minf", b"dinf") => self.keep(&mut track.dinf, inner, data),
            (b"stbl", b"stsd") => {
                if data.len() < 16 {
                    return Err(self.too_small(inner).into());
                }
                self.keep(&mut track.stsd, inner, data)
            }
            (b"stbl", _) => self.table(inner, data, track),
            _ => Ok(()),
        })
    }

    fn duplicate(&self, name: &[u8; 4]) -> Trouble {
        self.wanted.wrong(&format!("duplicate mp4 {} atom", String::from_utf8_lossy(name)))
    }

    /// Keeps an atom as it is.
    fn keep(&self, place: &mut Option<Vec<u8>>, name: &[u8; 4], data: &[u8]) -> Result<(), Stop> {
        if place.is_some() {
            return Err(self.duplicate(name).into());
        }
        *place = Some(atom(name, &[data]));
        Ok(())
    }

    /// The tables of a track.
    fn table(&self, name: &[u8; 4], data: &[u8], track: &mut Track) -> Result<(), Stop> {
        let size = match name {
            b"stts" | b"ctts" | b"co64" => 8,
            b"stss" | b"stco" | b"stsz" => 4,
            b"stsc" => 12,
            _ => return Ok(()),
        };
        // The sizes of samples have their common size before their number.
        let start = if name == b"stsz" { 12 } else { 8 };
        let Some(rest) = data.get(start..) else { return Err(self.too_small(name).into()) };
        let entries = u64::from(get32(data, start - 4));
        let uniform = name == b"stsz" && get32(data, 4) != 0;
        let length = if uniform { 0 } else { entries * size };
        if length > rest.len() as u64 {
            return Err(self.too_small(name).into());
        }
        let flags = get32(data, 0);
        let entries = rest[..length as usize].chunks_exact(size as usize);
        let pair = |entry: &[u8]| (get32(entry, 0), get32(entry, 4));
        let duplicate = match name {
            b"stts" => track.stts.replace((flags, entries.map(pair).collect())).is_some(),
            b"ctts" => track.ctts.replace((flags, entries.map(pair).collect())).is_some(),
            b"stss" => track.stss.replace((flags, entries.map(|entry| get32(entry, 0)).collect())).is_some(),
            b"stsc" => {
                let chunk = |entry: &[u8]| Chunk {
                    chunk: get32(entry, 0),
                    samples: get32(entry, 4),
                    id: get32(entry, 8),
                };
                track.stsc.replace((flags, entries.map(chunk).collect())).is_some()
            }
            b"stsz" if uniform => {
                track.uniform.replace(data[..start].to_vec()).is_some() || track.stsz.is_some()
            }
            b"stsz" => {
                let sizes = entries.map(|entry| get32(entry, 0)).collect();
                track.stsz.replace((flags, sizes)).is_some() || track.uniform.is_some()
            }
            _ => {
                let wide = name == b"co64";
                let offset = |entry: &[u8]| if wide { get64(entry, 0) } else { u64::from(get32(entry, 0)) };
                if track.offsets.replace((flags, entries.map(offset).collect())).is_some() {
                    return Err(self.wanted.wrong("duplicate mp4 stco/co64 atom").into());
                }
                track.wide = wide;
                false
            }
        };
        if duplicate { Err(self.duplicate(name).into()) } else { Ok(()) }
    }

    /// Crops the tracks and puts them together before the data.
    fn put_together(mut self, ftyp: Vec<u8>, mdat_end: u64) -> Result<Cut, Trouble> {
        let wanted = self.wanted;
        let (mut start, mut end) = (wanted.end, 0);
        for track in &mut self.tracks {
            let (first, last) = track.crop(wanted, mdat_end)?;
            (start, end) = (start.min(first), end.max(last));
        }
        if end <= start {
            return Err(wanted.wrong("no data between start time and end time"));
        }
        if start >= mdat_end {
            return Err(wanted.wrong("start time is out mp4 mdat atom"));
        }
        let length = end - start;
        let mdat = match u32::try_from(length + 8) {
            Ok(size) => [&size.to_be_bytes()[..], b"mdat"].concat(),
            Err(_) => [&1u32.to_be_bytes()[..], b"mdat", &(length + 16).to_be_bytes()].concat(),
        };
        // How long it is does not depend on where the data is.
        let before = ftyp.len() + self.whole().len() + mdat.len();
        let moved = (before as u64).wrapping_sub(start);
        self.tracks.iter_mut().for_each(|track| track.move_data(moved));
        let head = [ftyp, self.whole(), mdat].concat();
        Ok(Cut { head, offset: start, length })
    }

    fn whole(&self) -> Vec<u8> {
        let mut data = self.mvhd.clone().unwrap_or_default();
        self.tracks.iter().for_each(|track| track.write(&mut data));
        atom(b"moov", &[&data])
    }
}

/// Writes a duration over the one that is there, in as many bytes as the version has.
pub(super) fn set_duration(data: &mut [u8], version: usize, at: usize, duration: u64) {
    if version == 0 {
        set(data, at, &(duration as u32).to_be_bytes());
    } else {
        set(data, at, &duration.to_be_bytes());
    }
}
