//! Whatever a client sends in whatever pieces, hyper gets whole frames that are right, and no more is kept than may be; whatever
//! hyper says, the client gets frames that it can read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::http2::Frames;
use weir_engine::http2::hpack::{Decoder, Fields, Limits};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LIMITS: Limits = Limits { field: 64, list: 512 };
const REQUESTS: u64 = 40;
const PAYLOAD: usize = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// What happens next, with a stream and bytes for it.
type Step<'b> = (u8, u8, u8, &'b [u8]);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Takes whole frames off the front.
fn next(bytes: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let &[a, b, c, kind, flags, d, e, f, g] = bytes.first_chunk()?;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let payload = bytes.get(9..9 + length)?.to_vec();
    bytes.drain(..9 + length);
    Some((kind, flags, u32::from_be_bytes([d, e, f, g]), payload))
}

/// What hyper reads.
#[derive(Default)]
struct Hyper {
    bytes: Vec<u8>,
    began: bool,
    last: u32,
    settings: usize,
}

impl Hyper {
    fn read(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if !self.began && self.bytes.len() >= PREFACE.len() {
            assert!(self.bytes.starts_with(PREFACE));
            self.bytes.drain(..PREFACE.len());
            self.began = true;
        }
        while let Some((kind, flags, stream, payload)) = next(&mut self.bytes) {
            assert!(payload.len() <= PAYLOAD && stream < 1 << 31);
            match kind {
                DATA => assert!(stream > 0 && flags & !1 == 0),
                HEADERS => {
                    assert!(stream % 2 == 1 && flags & !5 == 0 && flags & 4 != 0);
                    assert_eq!(payload.is_empty(), stream <= self.last, "the head of a new stream");
                    let (mut fields, mut limits) = (Fields::default(), LIMITS);
                    Decoder::new().decode(&payload, false, &mut limits, &mut fields).unwrap();
                    self.last = self.last.max(stream);
                }
                RST_STREAM => assert!(stream > 0 && payload.len() == 4),
                SETTINGS => {
                    assert!(stream == 0 && payload.len() % 6 == 0 && (flags & 1 == 0 || payload.is_empty()));
                    self.settings += usize::from(flags & 1 == 0);
                }
                PING => assert!(stream == 0 && flags & 1 == 0 && payload.len() == 8),
                WINDOW_UPDATE => assert!(payload.len() == 4),
                _ => panic!("a frame of kind {kind}"),
            }
        }
    }
}

/// What the client reads.
struct Client {
    bytes: Vec<u8>,
    decoder: Decoder,
    /// Of the frames of a head that is not whole.
    block: Option<(u32, Vec<u8>)>,
    parted: bool,
}

impl Client {
    fn read(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some((kind, flags, stream, payload)) = next(&mut self.bytes) {
            match (kind, self.block.take()) {
                (HEADERS, None) => self.block = Some((stream, payload)),
                (CONTINUATION, Some((of, block))) => {
                    assert_eq!(of, stream);
                    self.block = Some((of, [block, payload].concat()));
                }
                (_, Some(_)) => panic!("a frame amid a head"),
                (GOAWAY, None) => assert!(!std::mem::replace(&mut self.parted, true), "the end, twice"),
                (_, None) => assert_ne!(kind, CONTINUATION),
            }
            if let Some((_, block)) = self.block.take_if(|_| flags & 4 != 0) {
                let (mut fields, mut limits) = (Fields::default(), Limits { field: 1 << 20, list: 1 << 20 });
                let read = self.decoder.decode(&block, false, &mut limits, &mut fields);
                assert_eq!(read, Ok(block.len()));
            }
        }
    }
}

fuzz_target!(|input: (u8, u8, Vec<Step<'_>>)| {
    let (rules, piece, steps) = input;
    let window = if rules & 1 == 0 { 65_535 } else { 100 };
    let mut frames = Frames::new(LIMITS, REQUESTS, 10, window, rules & 2 != 0);
    let mut hyper = Hyper::default();
    let mut client = Client { bytes: vec![], decoder: Decoder::new(), block: None, parted: false };
    frames.came(PREFACE).expect("the preface");
    // Of what hyper says only whole frames are behind each other.
    let (mut acknowledged, mut unsent) = (0, vec![]);
    for (what, kind, number, bytes) in steps {
        let stream = u32::from(number);
        let (name, value) = bytes.split_at(bytes.len() / 2);
        let mut fields = Fields::default();
        // No name is empty.
        fields.push(&[b"x", name].concat(), value);
        let came = match what % 16 {
            0 => bytes.to_vec(),
            // So many that pieces go over their ends.
            1..=5 => frame(kind % 12, what & 0xfd, stream, bytes),
            6 => frame(HEADERS, 4 | (what >> 7), stream | 1, bytes),
            7 => frame(DATA, what >> 4, stream | 1, &vec![number; usize::from(kind) * 257]),
            _ => vec![],
        };
        for piece in came.chunks(usize::from(piece).max(1)) {
            if frames.came(piece).is_err() {
                hyper.read(&frames.for_hyper());
                client.read(&frames.for_client());
                return;
            }
        }
        hyper.read(&frames.for_hyper());
        let said = match what % 16 {
            8 => {
                frames.answer(stream, fields.clone(), fields);
                frame(HEADERS, 4 | (what >> 7), stream, b"of hyper")
            }
            9 => {
                let n = frames.give(stream, usize::from(kind) * 100);
                frame(DATA, what >> 7, stream, &vec![0; n])
            }
            10 if acknowledged < hyper.settings => {
                acknowledged += 1;
                frame(SETTINGS, 1, 0, b"")
            }
            10 => frame(HEADERS, 5, stream, b""),
            11 => frame(GOAWAY, 0, 0, &[0; 8]),
            12 => frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1]),
            13 => frame(RST_STREAM, 0, stream, &[0; 4]),
            14 => {
                match kind % 6 {
                    0 => frames.leave(stream),
                    1 => frames.hint(stream, fields),
                    2 => frames.reset(stream | 1),
                    3 => frames.forgo(),
                    4 => frames.part(),
                    _ => {}
                }
                vec![]
            }
            _ => vec![],
        };
        unsent.extend(said);
        let now = if what & 16 == 0 { unsent.len() } else { unsent.len() / 2 };
        for piece in unsent.drain(..now).collect::<Vec<_>>().chunks(usize::from(piece).max(1)) {
            frames.said(piece);
        }
        hyper.read(&frames.for_hyper());
        client.read(&frames.for_client());
        let (streams, bytes) = frames.kept();
        assert!(streams <= 256 + REQUESTS as usize, "{streams} streams");
        assert!(bytes <= PAYLOAD + LIMITS.list + 2 * LIMITS.field + 16, "{bytes} bytes");
    }
    frames.said(&unsent);
    client.read(&frames.for_client());
    assert!(client.bytes.is_empty() && client.block.is_none(), "all frames are whole");
});
