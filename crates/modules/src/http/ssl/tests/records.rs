//! What leaves together, and what does not wait for that.

use std::sync::mpsc;

use rustls::ClientConnection;
use weir_testkit::Origin;

use super::*;

/// A client that sends the end of its handshake and its request at once.
struct Client {
    session: ClientConnection,
    socket: TcpStream,
}

impl Client {
    async fn asking(running: &Running, config: Arc<ClientConfig>, request: &str) -> Self {
        let name = ServerName::try_from("a.example").unwrap();
        let session = ClientConnection::new(config, name).unwrap();
        let mut client = Self { session, socket: running.connect().await };
        while client.session.is_handshaking() {
            client.send().await;
            client.take_in().await;
        }
        io::Write::write_all(&mut client.session.writer(), request.as_bytes()).unwrap();
        client.send().await;
        client
    }

    async fn send(&mut self) {
        let mut records = vec![];
        while self.session.wants_write() {
            self.session.write_tls(&mut records).unwrap();
        }
        self.socket.write_all(&records).await.unwrap();
    }

    /// One read's worth of records.
    async fn take_in(&mut self) {
        let mut bytes = [0; 4096];
        let n = self.socket.read(&mut bytes).await.unwrap();
        assert_ne!(n, 0, "the server ended the connection");
        assert_eq!(self.session.read_tls(&mut &bytes[..n]).unwrap(), n);
        self.session.process_new_packets().unwrap();
    }

    fn text(&mut self) -> String {
        let mut text = [0; 4096];
        let n = io::Read::read(&mut self.session.reader(), &mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..n]).into_owned()
    }
}

#[test]
fn tickets_wait_for_an_answer_but_not_for_a_slow_one() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let (go, come) = mpsc::sync_channel(1);
        let come = std::sync::Mutex::new(come);
        let origin = Origin::start(move |visit| {
            visit.head()?;
            come.lock().unwrap().recv().unwrap();
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
        });
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                location / {{ return 200 quick; }}
                location /slow {{ proxy_pass http://{0}; }}
                location /heedless {{ proxy_pass http://{0}; proxy_ignore_client_abort on; }} }}",
            origin.address()
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let config = made.client(&[&TLS13]);

        let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let mut client = Client::asking(&running, Arc::clone(&config), request).await;
        client.take_in().await;
        assert!(client.session.tls13_tickets_received() > 0);
        assert!(client.text().ends_with("quick"), "one write");

        for path in ["/slow", "/heedless"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
            let mut client = Client::asking(&running, Arc::clone(&config), &request).await;
            client.take_in().await;
            assert!(client.session.tls13_tickets_received() > 0, "{path}");
            assert_eq!(client.text(), "", "{path}: it is not even asked for");
            go.send(()).unwrap();
            client.take_in().await;
            assert!(client.text().ends_with("slow"), "{path}");
        }
    });
}

#[test]
fn only_a_whole_response_ends_with_a_close_notify() {
    let made = Made::new(&["a"]);
    on_a_thread(async {
        let origin = Origin::start(|visit| {
            let path = visit.head()?.split(' ').nth(1).unwrap_or_default().to_owned();
            visit.send(match path.as_str() {
                "/cut" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
                "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n",
                "/cut-chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
                _ => "HTTP/1.0 200 OK\r\n\r\nwhole",
            })?;
            visit.finish()
        });
        let (listener, port) = listener().await;
        let conf = format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate a.crt; ssl_certificate_key a.key;
                location / {{ proxy_pass http://{}; proxy_http_version 1.1; }}
                location /here {{ return 200 whole; }} }}",
            origin.address()
        );
        let site = Site::with_files(&conf, &made.files());
        let running = Running::new(&site, listener);
        let client = made.client(&[&TLS13]);
        for (path, version, whole) in [
            ("/here", "1.1", true),
            ("/chunked", "1.1", true),
            ("/until-the-end", "1.0", true),
            ("/cut", "1.1", false),
            ("/cut-chunk", "1.1", false),
            ("/cut-chunk", "1.0", false),
        ] {
            let name = ServerName::try_from("a.example").unwrap();
            let socket = running.connect().await;
            let mut tls = TlsConnector::from(Arc::clone(&client)).connect(name, socket).await.unwrap();
            let request =
                format!("GET {path} HTTP/{version}\r\nHost: a.example\r\nConnection: close\r\n\r\n");
            tls.write_all(request.as_bytes()).await.unwrap();
            let mut answer = vec![];
            let read = tls.read_to_end(&mut answer).await;
            assert_eq!(read.is_ok(), whole, "{path} {version}: {}", String::from_utf8_lossy(&answer));
        }
    });
}
