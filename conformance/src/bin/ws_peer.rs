//! Both ends of a WebSocket beside a server under test: a backend that names itself, echoes and writes
//! down what it was asked, and a client over TLS that checks every byte it gets back.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "\
Usage: ws-peer serve ADDRESS NAME LOG           answer and echo; request heads go to LOG
       ws-peer exchange HOST PORT CERTIFICATE   messages of many sizes over wss
       ws-peer hold HOST PORT CERTIFICATE N     N tunnels; each line on stdin is sent over all of them
";

/// From nothing to 16 MiB, with both sides of the frame header's two boundaries.
const SIZES: [usize; 10] = [0, 1, 125, 126, 1000, 65_535, 65_536, 100_000, 1 << 20, 16 << 20];

/// The message that a backend answers with its name.
const WHO: &str = "who?";

/// A peer that says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["serve", address, name, log] => serve(address, name, log),
        ["exchange", host, port, certificate] => exchange(host, port, certificate),
        ["hold", host, port, certificate, count] => hold(host, port, certificate, count),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Large enough for the largest of `SIZES`, in one frame.
fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20))
}

fn serve(address: &str, name: &str, log: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let log = Arc::new(Mutex::new(File::create(log)?));
    for stream in listener.incoming() {
        let (stream, name, log) = (stream?, name.to_owned(), log.clone());
        std::thread::spawn(move || {
            if let Err(e) = answer(stream, &name, &log) {
                eprintln!("{name}: {e}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str, log: &Mutex<File>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let head = loop {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk)?;
        bytes.extend_from_slice(&chunk[..n]);
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if n == 0 {
            return Ok(());
        }
    };
    let rest = bytes.split_off(head);
    log.lock().map_err(|_| "the log is broken")?.write_all(&bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let header = |name: &str| {
        text.lines()
            .filter_map(|l| l.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|h| h.1)
    };
    let Some(key) = header("Sec-WebSocket-Key") else {
        let body = format!("plain answer of {name}\n");
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
        return Ok(());
    };
    let accept = derive_accept_key(key.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    let mut socket = WebSocket::from_partially_read(stream, rest, Role::Server, Some(config()));
    loop {
        match socket.read() {
            Ok(Message::Text(text)) if text.as_str() == WHO => socket.send(Message::text(name))?,
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message)?,
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

type Client = WebSocket<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>;

fn connect(host: &str, port: &str, certificate: &str) -> Result<Client> {
    let stream = TcpStream::connect(format!("{host}:{port}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = rustls::ClientConnection::new(Arc::new(tls), ServerName::try_from(host.to_owned())?)?;
    let stream = rustls::StreamOwned::new(tls, stream);
    let url = format!("wss://{host}/ws");
    let (socket, _) = tungstenite::client::client_with_config(url, stream, Some(config()))
        .map_err(|e| format!("handshake: {e}"))?;
    Ok(socket)
}

fn who(socket: &mut Client) -> Result<String> {
    socket.send(Message::text(WHO))?;
    Ok(socket.read()?.into_text()?.to_string())
}

fn expect_back(socket: &mut Client, message: Message) -> Result<()> {
    socket.send(message.clone())?;
    let back = socket.read()?;
    if back == message {
        Ok(())
    } else {
        Err(format!("{} bytes came back as {} others", message.len(), back.len()).into())
    }
}

fn exchange(host: &str, port: &str, certificate: &str) -> Result<()> {
    let mut socket = connect(host, port, certificate)?;
    let name = who(&mut socket)?;
    for size in SIZES {
        let binary: Vec<u8> = (0..size).map(|i| (i * 31 + i / 251) as u8).collect();
        expect_back(&mut socket, Message::binary(binary)).map_err(|e| format!("binary, {size}: {e}"))?;
        // A character of two bytes, so that text is cut in the middle of one somewhere.
        let text = "ä".repeat(size / 2) + if size % 2 == 1 { "x" } else { "" };
        expect_back(&mut socket, Message::text(text)).map_err(|e| format!("text, {size}: {e}"))?;
    }
    leave(socket)?;
    say(&name)
}

fn hold(host: &str, port: &str, certificate: &str, count: &str) -> Result<()> {
    let mut sockets = Vec::new();
    let mut names = Vec::new();
    for _ in 0..count.parse::<usize>()? {
        let mut socket = connect(host, port, certificate)?;
        names.push(who(&mut socket)?);
        sockets.push(socket);
    }
    say(&names.join(" "))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        for socket in &mut sockets {
            expect_back(socket, Message::text(line.clone()))?;
            expect_back(socket, Message::binary(line.clone().into_bytes()))?;
        }
        say(&format!("{} alive", sockets.len()))?;
    }
    sockets.into_iter().try_for_each(leave)
}

/// The closing handshake, to its end. After the peer's Close frame it may leave without a TLS goodbye.
fn leave(mut socket: Client) -> Result<()> {
    socket.close(None)?;
    let mut closed = false;
    loop {
        match socket.read() {
            Ok(message) => closed |= message.is_close(),
            Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
            Err(tungstenite::Error::Io(e)) if closed && e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(format!("while closing: {e}").into()),
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
