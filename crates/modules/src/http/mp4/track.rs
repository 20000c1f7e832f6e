//! A track: its tables, cropped to the samples between two times.

use super::atoms::{Trouble, Wanted, atom, put, set_duration};

/// From which chunk on chunks have how many samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Counted from 1.
    pub chunk: u32,
    pub samples: u32,
    pub id: u32,
}

/// A table, behind its version and flags.
type Table<T> = Option<(u32, Vec<T>)>;

#[derive(Default)]
pub(super) struct Track {
    /// The atoms around others that were met.
    pub containers: Vec<[u8; 4]>,
    pub tkhd: Option<Vec<u8>>,
    pub mdhd: Option<Vec<u8>>,
    pub hdlr: Option<Vec<u8>>,
    /// `vmhd` or `smhd`
    pub xmhd: Option<Vec<u8>>,
    pub dinf: Option<Vec<u8>>,
    pub stsd: Option<Vec<u8>>,
    /// Number and duration of samples.
    pub stts: Table<(u32, u32)>,
    /// Key frames, counted from 1.
    pub stss: Table<u32>,
    /// Number and offset of samples.
    pub ctts: Table<(u32, u32)>,
    pub stsc: Table<Chunk>,
    /// The chunk that is begun in its midst.
    first: Option<Chunk>,
    /// The chunk that is left in its midst.
    last: Option<Chunk>,
    pub stsz: Table<u32>,
    /// The data of a `stsz` of samples that are all of one size.
    pub uniform: Option<Vec<u8>>,
    pub offsets: Table<u64>,
    /// They are 64 bits long (`co64`).
    pub wide: bool,
    pub timescale: u32,
    /// In units of the track, and of the movie.
    pub duration: u64,
    pub movie_duration: u64,
    /// Where in `mdhd` the duration stands, by which version.
    pub duration_at: (usize, usize),
    /// How long the samples are that come before the start.
    prefix: u64,
    samples: Span,
    chunks: Span,
    /// Samples of the first chunk before the start, and of the last one before the end.
    partly: Span,
    /// Their bytes.
    sizes: (u64, u64),
}

#[derive(Clone, Copy, Default)]
struct Span {
    start: u64,
    end: u64,
}

impl Track {
    /// Crops the tables; where in the file the data begins and ends.
    pub(super) fn crop(&mut self, wanted: &Wanted, mdat_end: u64) -> Result<(u64, u64), Trouble> {
        self.crop_times(wanted)?;
        self.crop_key_frames(wanted);
        self.crop_offsets_of_samples(wanted);
        self.crop_chunks(wanted)?;
        self.crop_sizes(wanted)?;
        let data = self.crop_data(wanted, mdat_end)?;
        if let Some(mdhd) = &mut self.mdhd {
            let (version, at) = self.duration_at;
            set_duration(mdhd, version, 8 + at, self.duration);
        }
        Ok(data)
    }

    fn crop_times(&mut self, wanted: &Wanted) -> Result<(), Trouble> {
        let Some((_, times)) = &mut self.stts else {
            return Err(wanted.wrong("no mp4 stts atoms were found"));
        };
        let Some((mut at, mut sample, mut rest)) =
            sample_at(times, Wanted::units(wanted.start, self.timescale))
        else {
            return Err(wanted.wrong("start time is out mp4 stts samples"));
        };
        let key_frames = self.stss.as_ref().filter(|_| wanted.start_key_frame);
        let mut before = match key_frames {
            Some((_, frames)) => before_key_frame(frames, sample, wanted)?,
            None => 0,
        };
        sample -= before;
        // The samples from the key frame on may be of several durations.
        while rest < before {
            self.prefix = self.prefix.saturating_add(rest * u64::from(times[at].1));
            before -= rest;
            let Some(earlier) = at.checked_sub(1) else { return Err(out_of_samples(wanted)) };
            at = earlier;
            rest = u64::from(times[at].0);
        }
        self.prefix = self.prefix.saturating_add(before * u64::from(times[at].1));
        self.duration = self.duration.saturating_add(self.prefix);
        rest -= before;
        times[at].0 -= rest as u32;
        times.drain(..at);
        self.samples.start = sample;
        if wanted.length > 0 {
            let end = Wanted::units(wanted.length, self.timescale).saturating_add(self.prefix);
            self.samples.end = sample
                + match sample_at(times, end) {
                    Some((at, sample, rest)) => {
                        times[at].0 = rest as u32;
                        times.truncate(at + 1);
                        sample
                    }
                    None => times.iter().map(|(count, _)| u64::from(*count)).sum(),
                };
        }
        Ok(())
    }

    fn crop_key_frames(&mut self, wanted: &Wanted) {
        let Some((_, frames)) = &mut self.stss else { return };
        let from = |frames: &[u32], sample: u64| {
            frames.iter().position(|frame| u64::from(*frame) > sample).unwrap_or(frames.len())
        };
        frames.drain(..from(frames, self.samples.start));
        if wanted.length > 0 {
            frames.truncate(from(frames, self.samples.end));
        }
        for frame in frames {
            *frame = frame.wrapping_sub(self.samples.start as u32);
        }
    }

    fn crop_offsets_of_samples(&mut self, wanted: &Wanted) {
        let Some((_, offsets)) = &mut self.ctts else { return };
        // The entry that a sample is in, and how many of that entry are before it.
        let entry_of = |offsets: &[(u32, u32)], mut sample: u64| {
            offsets.iter().enumerate().find_map(|(at, (count, _))| {
                let count = u64::from(*count);
                if sample < count {
                    return Some((at, sample));
                }
                sample -= count;
                None
            })
        };
        match entry_of(offsets, self.samples.start) {
            Some((at, before)) => {
                offsets[at].0 -= before as u32;
                offsets.drain(..at);
            }
            None => offsets.clear(),
        }
        if wanted.length > 0
            && let Some((at, before)) = entry_of(offsets, self.samples.end - self.samples.start)
        {
            offsets[at].0 = before as u32;
            offsets.truncate(at + 1);
        }
        if offsets.is_empty() {
            self.ctts = None;
        }
    }

    fn crop_chunks(&mut self, wanted: &Wanted) -> Result<(), Trouble> {
        let count = self.offsets.as_ref().map_or(0, |(_, offsets)| offsets.len() as u64);
        let Some((_, runs)) = &mut self.stsc else {
            return Err(wanted.wrong("no mp4 stsc atoms were found"));
        };
        if runs.is_empty() {
            return Err(wanted.wrong("zero number of entries in stsc atom"));
        }
        let place = place_of(runs, self.samples.start, count, "start", wanted)?;
        let run = runs[place.run];
        self.chunks.start = place.chunk;
        self.partly.start = place.before;
        let left = run.samples - place.before as u32;
        let only_one = place.next.checked_sub(place.chunk) == Some(2);
        runs.drain(..place.run);
        runs[0].chunk = (place.chunk as u32).wrapping_add(1);
        if place.before > 0 && only_one {
            runs[0].samples = left;
        } else if place.before > 0 {
            self.first = Some(Chunk { chunk: 1, samples: left, id: run.id });
            runs[0].chunk = (place.chunk as u32).wrapping_add(2);
        }
        if wanted.length > 0 {
            let mut samples = self.samples.end - self.samples.start;
            if let Some(first) = &mut self.first {
                first.samples = first.samples.min(u32::try_from(samples).unwrap_or(u32::MAX));
                samples -= u64::from(first.samples);
            }
            let place = place_of(runs, samples, count, "end", wanted)?;
            let run = runs[place.run];
            if place.rest > 0 {
                runs.truncate(place.run + 1);
                self.partly.end = u64::from(run.samples);
            } else {
                runs.truncate(place.run);
                self.partly.end = u64::from(place.earlier);
            }
            self.chunks.end = place.chunk;
            if place.before > 0 {
                self.chunks.end += 1;
                self.partly.end = place.before;
                let samples = place.before as u32;
                if place.chunk + 1 == u64::from(run.chunk) {
                    runs[place.run].samples = samples;
                } else {
                    let chunk = self.chunks.end.wrapping_sub(self.chunks.start) as u32;
                    self.last = Some(Chunk { chunk, samples, id: run.id });
                }
            }
        }
        for run in runs {
            run.chunk = run.chunk.wrapping_sub(self.chunks.start as u32);
        }
        Ok(())
    }

    fn crop_sizes(&mut self, wanted: &Wanted) -> Result<(), Trouble> {
        let Some((_, sizes)) = &mut self.stsz else { return Ok(()) };
        let start = self.samples.start as usize;
        if start >= sizes.len() {
            return Err(wanted.wrong("start time is out mp4 stsz samples"));
        }
        // The samples right before one.
        let sum = |end: usize, count: u64, which: &str| {
            let part = end.checked_sub(count as usize).and_then(|from| sizes.get(from..end));
            let sum = part.map(|part| part.iter().map(|size| u64::from(*size)).sum());
            sum.filter(|sum| *sum <= wanted.end)
                .ok_or_else(|| wanted.wrong(&format!("too large mp4 {which} samples size")))
        };
        self.sizes.0 = sum(start, self.partly.start, "start")?;
        if wanted.length > 0 {
            let end = self.samples.end as usize;
            if end > sizes.len() {
                return Err(wanted.wrong("end time is out mp4 stsz samples"));
            }
            self.sizes.1 = sum(end, self.partly.end, "end")?;
            sizes.truncate(end);
        }
        sizes.drain(..start);
        Ok(())
    }

    fn crop_data(&mut self, wanted: &Wanted, mdat_end: u64) -> Result<(u64, u64), Trouble> {
        let name = if self.wide { "co64" } else { "stco" };
        let Some((_, offsets)) = &mut self.offsets else {
            return Err(wanted.wrong("no mp4 stco atoms were found"));
        };
        let count = offsets.len() as u64;
        if self.chunks.start >= count {
            return Err(wanted.wrong(&format!("start time is out mp4 {name} chunks")));
        }
        let most = if self.wide { u64::MAX } else { u64::from(u32::MAX) };
        let behind = |offset: u64, size: u64| {
            offset
                .checked_add(size)
                .filter(|end| *end <= wanted.end && *end <= most)
                .ok_or_else(|| wanted.wrong("too large chunk offset"))
        };
        offsets.drain(..self.chunks.start as usize);
        let start = behind(offsets[0], self.sizes.0)?;
        offsets[0] = start;
        if wanted.length == 0 {
            return Ok((start, mdat_end));
        }
        let left = self.chunks.end.checked_sub(self.chunks.start).filter(|_| self.chunks.end <= count);
        let Some(left) = left else {
            return Err(wanted.wrong(&format!("end time is out mp4 {name} chunks")));
        };
        offsets.truncate(left as usize);
        match offsets.last() {
            Some(last) => Ok((start, behind(*last, self.sizes.1)?)),
            // Nothing of it.
            None => Ok((wanted.end, 0)),
        }
    }

    /// Moves all data by so many bytes, round the end of numbers.
    pub(super) fn move_data(&mut self, by: u64) {
        for offset in self.offsets.iter_mut().flat_map(|(_, offsets)| offsets) {
            *offset = offset.wrapping_add(by);
        }
    }

    /// Appends the track as an atom.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let stbl = self.stbl();
        let part = |part: &Option<Vec<u8>>| part.clone().unwrap_or_default();
        let (xmhd, dinf, mdhd, hdlr) =
            (part(&self.xmhd), part(&self.dinf), part(&self.mdhd), part(&self.hdlr));
        let minf = atom(b"minf", &[&xmhd, &dinf, &atom(b"stbl", &[&stbl])]);
        let mdia = atom(b"mdia", &[&mdhd, &hdlr, &minf]);
        put(b"trak", &[&part(&self.tkhd), &self.edts(), &mdia], out);
    }

    /// Lets players pass over what comes before the start.
    fn edts(&self) -> Vec<u8> {
        if self.prefix == 0 {
            return vec![];
        }
        let (version, entries) = ([1, 0, 0, 0], 1u32.to_be_bytes());
        let (duration, start) = (self.movie_duration.to_be_bytes(), self.prefix.to_be_bytes());
        atom(b"edts", &[&atom(b"elst", &[&version, &entries, &duration, &start, &[0, 1, 0, 0]])])
    }

    fn stbl(&self) -> Vec<u8> {
        let mut out = self.stsd.clone().unwrap_or_default();
        let pair = |(first, second): &(u32, u32), out: &mut Vec<u8>| {
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&second.to_be_bytes());
        };
        let single = |value: &u32, out: &mut Vec<u8>| out.extend_from_slice(&value.to_be_bytes());
        table(b"stts", &self.stts, &mut out, pair);
        table(b"stss", &self.stss, &mut out, single);
        table(b"ctts", &self.ctts, &mut out, pair);
        let runs = self.stsc.as_ref().map(|(flags, runs)| {
            (*flags, self.first.iter().chain(runs).chain(&self.last).copied().collect::<Vec<_>>())
        });
        table(b"stsc", &runs, &mut out, |run, out| {
            for value in [run.chunk, run.samples, run.id] {
                single(&value, out);
            }
        });
        if let Some(uniform) = &self.uniform {
            put(b"stsz", &[uniform], &mut out);
        }
        if let Some((flags, sizes)) = &self.stsz {
            let mut data = [flags.to_be_bytes(), [0; 4], (sizes.len() as u32).to_be_bytes()].concat();
            sizes.iter().for_each(|size| single(size, &mut data));
            put(b"stsz", &[&data], &mut out);
        }
        if self.wide {
            table(b"co64", &self.offsets, &mut out, |at, out| out.extend_from_slice(&at.to_be_bytes()));
        } else {
            table(b"stco", &self.offsets, &mut out, |at, out| single(&(*at as u32), out));
        }
        out
    }
}

/// Appends a table as an atom, where there is one.
fn table<T>(name: &[u8; 4], table: &Table<T>, out: &mut Vec<u8>, each: impl Fn(&T, &mut Vec<u8>)) {
    let Some((flags, entries)) = table else { return };
    let mut data = [flags.to_be_bytes(), (entries.len() as u32).to_be_bytes()].concat();
    entries.iter().for_each(|entry| each(entry, &mut data));
    put(name, &[&data], out);
}

fn out_of_samples(wanted: &Wanted) -> Trouble {
    wanted.wrong("start time is out mp4 stts samples")
}

/// The entry that a time is in, the sample, and how many samples of the entry are before it.
fn sample_at(times: &[(u32, u32)], mut time: u64) -> Option<(usize, u64, u64)> {
    let mut sample = 0u64;
    for (at, (count, duration)) in times.iter().enumerate() {
        let (count, duration) = (u64::from(*count), u64::from(*duration));
        if time < count * duration {
            return Some((at, sample + time / duration, time / duration));
        }
        sample += count;
        time -= count * duration;
    }
    None
}

/// How many samples there are from the last key frame on up to that sample.
fn before_key_frame(frames: &[u32], sample: u64, wanted: &Wanted) -> Result<u64, Trouble> {
    let mut before = 0;
    for frame in frames {
        match u64::from(*frame) {
            0 => return Err(wanted.wrong("zero sync sample")),
            frame if frame > sample + 1 => break,
            frame => before = sample + 1 - frame,
        }
    }
    Ok(before)
}

/// Where in the chunks a sample is.
struct Place {
    run: usize,
    /// Counted from 0.
    chunk: u64,
    /// Samples of the chunk before it, and of the run.
    before: u64,
    rest: u64,
    /// The number of the first chunk behind the run.
    next: u64,
    /// How many samples the chunks of the run before have.
    earlier: u32,
}

fn place_of(
    runs: &[Chunk],
    mut sample: u64,
    chunks: u64,
    which: &str,
    wanted: &Wanted,
) -> Result<Place, Trouble> {
    let mut earlier = 0;
    let mut found = None;
    for (at, run) in runs.iter().enumerate() {
        let following = runs.get(at + 1);
        let next = following.map_or(chunks + 1, |run| u64::from(run.chunk));
        let Some(length) = next.checked_sub(u64::from(run.chunk)) else {
            return Err(wanted.wrong("unordered mp4 stsc chunks"));
        };
        let samples = length * u64::from(run.samples);
        // The end may be right behind the last.
        if sample < samples || (following.is_none() && sample == samples) {
            found = Some((at, *run, next));
            break;
        }
        if following.is_some() {
            sample -= samples;
            if length > 0 {
                earlier = run.samples;
            }
        }
    }
    let Some((at, run, next)) = found else {
        return Err(wanted.wrong(&format!("{which} time is out mp4 stsc chunks")));
    };
    if run.samples == 0 {
        return Err(wanted.wrong("zero number of samples"));
    }
    let Some(first) = run.chunk.checked_sub(1) else { return Err(wanted.wrong("zero chunk")) };
    let samples = u64::from(run.samples);
    let chunk = u64::from(first) + sample / samples;
    Ok(Place { run: at, chunk, before: sample % samples, rest: sample, next, earlier })
}
