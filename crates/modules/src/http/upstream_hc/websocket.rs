//! A WebSocket as a check opens one (RFC 6455): the handshake, a Ping and its Pong, and the end.

use std::future::poll_fn;
use std::io;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use weir_engine::http::exchange::Tunnel;
use weir_engine::http::{Headers, base64_encode};

/// Bytes that a server may send before its Pong.
const AHEAD: usize = 256 * 1024;

const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const CLOSE: u8 = 0x8;

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The generator fails only where the system has no randomness at all; TLS would not start there.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

/// A key, and the fields that ask for a WebSocket with it.
pub(super) fn offer() -> (String, String) {
    let key = base64_encode(&random::<16>());
    let fields = format!(
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
    );
    (key, fields)
}

/// Whether the server has understood the key.
pub(super) fn is_accepted(key: &str, headers: &Headers) -> bool {
    let joined = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let expected = base64_encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, joined.as_bytes()).as_ref());
    let is_websocket = |value: &[u8]| value.eq_ignore_ascii_case(b"websocket");
    headers.all(b"Upgrade").any(is_websocket)
        && headers.all(b"Sec-WebSocket-Accept").eq([expected.as_bytes()])
}

/// A short frame as a client sends it.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = random::<4>();
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame of a server: its opcode, its payload, and its length; none while it is not all there.
fn first(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (opcode, length) = (bytes.first()? & 0xf, bytes.get(1)?);
    let (head, length) = match length & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    // Servers mask nothing; what is masked all the same is no Pong of ours.
    let head: usize = if bytes[1] & 0x80 == 0 { head } else { head + 4 };
    let end = head.checked_add(length)?;
    Some((opcode, bytes.get(head..end)?, end))
}

/// Whether a Ping comes back as a Pong. Whatever else the server says goes by.
pub(super) async fn ping(tunnel: &mut Tunnel) -> bool {
    let payload = random::<8>();
    let answered = matches!(pong(tunnel, &payload).await, Ok(true));
    if answered {
        // 1000: it has served its purpose. Nobody waits for the answer to that.
        let _ = write(tunnel, &frame(CLOSE, &1000_u16.to_be_bytes())).await;
        tunnel.upstream.farewell();
    }
    answered
}

async fn pong(tunnel: &mut Tunnel, payload: &[u8]) -> io::Result<bool> {
    write(tunnel, &frame(PING, payload)).await?;
    let mut read = tunnel.from_upstream.to_vec();
    let mut piece = vec![0; 4096];
    let mut before = 0;
    loop {
        while let Some((opcode, own, length)) = first(&read) {
            match opcode {
                PONG if own == payload => return Ok(true),
                CLOSE => return Ok(false),
                _ => {}
            }
            before += length;
            read.drain(..length);
        }
        if before + read.len() > AHEAD {
            return Ok(false);
        }
        match poll_fn(|cx| tunnel.upstream.poll_read(cx, &mut piece)).await? {
            0 => return Ok(false),
            n => read.extend_from_slice(&piece[..n]),
        }
    }
}

async fn write(tunnel: &mut Tunnel, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| tunnel.upstream.poll_write(cx, bytes)).await?;
        bytes = &bytes[n..];
    }
    poll_fn(|cx| tunnel.upstream.poll_flush(cx)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_accepted() {
        let mut headers = Headers::default();
        headers.push(b"Upgrade", b"WebSocket");
        headers.push(b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_accepted("dGhlIHNhbXBsZSBub25jZQ==", &headers));
        assert!(!is_accepted("dGhlIHNhbXBsZSBub25jZQ=", &headers));
        headers.push(b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!is_accepted("dGhlIHNhbXBsZSBub25jZQ==", &headers));
    }

    #[test]
    fn frames_of_servers() {
        assert_eq!(first(b"\x8a\x02hi!"), Some((PONG, &b"hi"[..], 4)));
        assert_eq!(first(b"\x8a\x02h"), None);
        assert_eq!(first(b"\x8a"), None);
        let long = [&b"\x82\x7e\x01\x00"[..], &[b'x'; 256]].concat();
        assert_eq!(first(&long).map(|(_, own, length)| (own.len(), length)), Some((256, 260)));
        assert_eq!(first(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }

    #[test]
    fn frames_of_clients_are_masked() {
        let frame = frame(PING, b"abc");
        assert_eq!(frame[..2], [0x89, 0x83]);
        let plain: Vec<u8> = frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(plain, b"abc");
    }
}
