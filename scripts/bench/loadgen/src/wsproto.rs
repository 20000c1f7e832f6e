//! Enough of RFC 6455 for echo servers and clients.
pub const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

pub fn b64(d: &[u8]) -> String {
    const T: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut o = String::new();
    for c in d.chunks(3) {
        let v = (c[0] as u32) << 16 | (*c.get(1).unwrap_or(&0) as u32) << 8 | *c.get(2).unwrap_or(&0) as u32;
        o.push(T[(v >> 18) as usize & 63] as char);
        o.push(T[(v >> 12) as usize & 63] as char);
        o.push(if c.len() > 1 { T[(v >> 6) as usize & 63] as char } else { '=' });
        o.push(if c.len() > 2 { T[v as usize & 63] as char } else { '=' });
    }
    o
}

pub fn accept_key(key: &[u8]) -> String {
    let mut c = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    c.update(key);
    c.update(GUID);
    b64(c.finish().as_ref())
}

pub fn header(out: &mut Vec<u8>, op: u8, len: usize, mask: Option<[u8; 4]>) {
    out.push(0x80 | op);
    let m = if mask.is_some() { 0x80 } else { 0 };
    if len < 126 {
        out.push(m | len as u8);
    } else if len < 65536 {
        out.push(m | 126);
        out.extend_from_slice(&(len as u16).to_be_bytes());
    } else {
        out.push(m | 127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
    if let Some(k) = mask {
        out.extend_from_slice(&k);
    }
}

/// (header length, payload length, mask, opcode) if the header is complete
pub fn parse(b: &[u8]) -> Option<(usize, usize, Option<[u8; 4]>, u8)> {
    if b.len() < 2 {
        return None;
    }
    let op = b[0] & 15;
    let masked = b[1] & 0x80 != 0;
    let (mut h, l) = match b[1] & 127 {
        126 => {
            if b.len() < 4 {
                return None;
            }
            (4, u16::from_be_bytes([b[2], b[3]]) as usize)
        }
        127 => {
            if b.len() < 10 {
                return None;
            }
            (10, u64::from_be_bytes(b[2..10].try_into().unwrap()) as usize)
        }
        n => (2, n as usize),
    };
    let mut k = None;
    if masked {
        if b.len() < h + 4 {
            return None;
        }
        k = Some([b[h], b[h + 1], b[h + 2], b[h + 3]]);
        h += 4;
    }
    Some((h, l, k, op))
}

pub fn xor(p: &mut [u8], k: [u8; 4]) {
    let k8 = u64::from_ne_bytes([k[0], k[1], k[2], k[3], k[0], k[1], k[2], k[3]]);
    let mut c = p.chunks_exact_mut(8);
    for w in &mut c {
        let v = u64::from_ne_bytes((&*w).try_into().unwrap()) ^ k8;
        w.copy_from_slice(&v.to_ne_bytes());
    }
    for (i, b) in c.into_remainder().iter_mut().enumerate() {
        *b ^= k[i & 3];
    }
}

/// Handshake request for `path`.
pub fn request(host: &str, path: &str, key: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: pbench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://{host}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    .into_bytes()
}

/// Blocking WebSocket open over any stream; nothing may follow the response head yet.
pub fn open_io<S: std::io::Read + std::io::Write>(
    s: &mut S,
    host: &str,
    path: &str,
    n: u64,
) -> Result<(), String> {
    let key = b64(&[n.to_le_bytes(), n.wrapping_mul(0x9E3779B97F4A7C15).to_le_bytes()].concat());
    s.write_all(&request(host, path, &key)).map_err(|e| format!("ws open send: {e}"))?;
    let mut buf = Vec::new();
    let mut tmp = [0u8; 4096];
    loop {
        let r = s.read(&mut tmp).map_err(|e| format!("ws open: {e}"))?;
        if r == 0 {
            return Err("ws open: closed".into());
        }
        buf.extend_from_slice(&tmp[..r]);
        if let Some(p) = crate::sys::find(&buf, b"\r\n\r\n") {
            let head = &buf[..p + 2];
            if !head.starts_with(b"HTTP/1.1 101") {
                return Err(format!("ws open: {}", String::from_utf8_lossy(&head[..head.len().min(60)])));
            }
            return match crate::sys::header(head, "sec-websocket-accept") {
                Some(v) if v == accept_key(key.as_bytes()).as_bytes() => Ok(()),
                _ => Err("ws open: bad Sec-WebSocket-Accept".into()),
            };
        }
    }
}

/// Blocking WebSocket open; returns bytes read past the response head.
pub fn open(fd: i32, host: &str, path: &str, n: u64) -> Result<Vec<u8>, String> {
    let mut raw = [0u8; 16];
    raw[..8].copy_from_slice(&n.to_le_bytes());
    raw[8..].copy_from_slice(&n.wrapping_mul(0x9E3779B97F4A7C15).to_le_bytes());
    let key = b64(&raw);
    crate::sys::send_all_blocking(fd, &request(host, path, &key))
        .map_err(|e| format!("ws open send: {e}"))?;
    let mut buf = Vec::new();
    let mut tmp = [0u8; 4096];
    loop {
        let r = crate::sys::recv(fd, &mut tmp);
        if r <= 0 {
            return Err(format!("ws open: recv {r} {}", std::io::Error::last_os_error()));
        }
        buf.extend_from_slice(&tmp[..r as usize]);
        if let Some(p) = crate::sys::find(&buf, b"\r\n\r\n") {
            let head = &buf[..p + 2];
            if !head.starts_with(b"HTTP/1.1 101") {
                return Err(format!("ws open: {}", String::from_utf8_lossy(&head[..head.len().min(60)])));
            }
            match crate::sys::header(head, "sec-websocket-accept") {
                Some(v) if v == accept_key(key.as_bytes()).as_bytes() => {}
                _ => return Err("ws open: bad Sec-WebSocket-Accept".into()),
            }
            return Ok(buf[p + 4..].to_vec());
        }
    }
}
