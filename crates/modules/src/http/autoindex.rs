//! `ngx_http_autoindex_module`: lists a directory that has no index, as a page, JSON or XML.

use std::io;
use std::os::unix::ffi::OsStringExt;

use weir_engine::contract::{Content, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::http1::uri::{Escape, escape, escape_html, escape_json};
use weir_engine::http1::{Method, date};
use weir_engine::localtime;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::{Diagnostic, Level};

use super::files;

/// Bytes of a name that the column of names has room for.
const NAME: usize = 50;

pub struct Autoindex;

type D = Directive<Autoindex>;

impl Module for Autoindex {
    const NAME: &'static str = "http_autoindex";
    type Main = ();
    type Scope = Listing;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("autoindex", Contexts::SCOPES, Takes::FLAG, |s, c| s.enable.flag(c)),
        D::scope("autoindex_format", Contexts::SCOPES, Takes::ONE, |s, c| {
            let words = [
                ("html", Format::Html),
                ("json", Format::Json),
                ("jsonp", Format::Jsonp),
                ("xml", Format::Xml),
            ];
            s.format.one_of(c, &words)
        }),
        D::scope("autoindex_localtime", Contexts::SCOPES, Takes::FLAG, |s, c| s.local_time.flag(c)),
        D::scope("autoindex_exact_size", Contexts::SCOPES, Takes::FLAG, |s, c| s.exact_size.flag(c)),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Html,
    Json,
    /// JSON in a call of the function that the argument `callback` names.
    Jsonp,
    Xml,
}

#[derive(Clone, Debug, Default)]
pub struct Listing {
    enable: Setting<bool>,
    format: Setting<Format>,
    local_time: Setting<bool>,
    exact_size: Setting<bool>,
}

impl Conf for Listing {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.enable.inherit(&outer.enable);
        self.format.inherit(&outer.format);
        self.local_time.inherit(&outer.local_time);
        self.exact_size.inherit(&outer.exact_size);
        Ok(())
    }
}

impl Install for Autoindex {
    fn install(conf: &Listing, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if conf.enable.or(false) {
            plan.handlers.content.push(Box::new(Lister {
                format: conf.format.or(Format::Html),
                local_time: conf.local_time.or(false),
                exact_size: conf.exact_size.or(true),
                utf8: super::charset::tells_utf8("text/html", plan),
            }));
        }
        Ok(())
    }
}

struct Lister {
    format: Format,
    local_time: bool,
    exact_size: bool,
    /// The client reads the names as UTF-8, so that their characters count.
    utf8: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: Vec<u8>,
    kind: Kind,
    size: u64,
    /// Seconds since the epoch.
    modified: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Directory,
    File,
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::File => "file",
            Kind::Other => "other",
        }
    }
}

impl Content for Lister {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        Step::Now(self.list(x))
    }
}

impl Lister {
    fn list(&self, x: &mut Exchange) -> Flow {
        if !x.uri.ends_with(b"/") || !matches!(x.method, Method::Get | Method::Head) {
            return Flow::Decline;
        }
        let Some(mut file) = x.file() else { return Flow::Answer(500) };
        if file.path.len() > 1 {
            file.path.pop();
        }
        let (mut format, mut call) = (self.format, None);
        if format == Format::Jsonp {
            match callback(x) {
                Ok(Some(name)) => call = Some(name),
                Ok(None) => format = Format::Json,
                Err(()) => return Flow::Answer(400),
            }
        }
        let entries = match std::fs::read_dir(files::path(&file.path)) {
            Ok(entries) => match read(entries, &file.path, x) {
                Ok(entries) => entries,
                Err(()) => return Flow::Answer(500),
            },
            Err(error) => return files::not_opened(&file.path, &error, x),
        };
        let content_type: &'static [u8] = match format {
            Format::Html => b"text/html",
            Format::Json => b"application/json",
            Format::Jsonp => b"application/javascript",
            Format::Xml => b"text/xml",
        };
        let mut page = Vec::new();
        match format {
            Format::Html => {
                let unix = x.reactor.clock().unix_secs() as i64;
                let offset = if self.local_time { localtime::local(unix).offset } else { 0 };
                write_html(&x.uri, &entries, offset, self.exact_size, self.utf8, &mut page);
            }
            Format::Json | Format::Jsonp => write_json(&entries, call.as_deref(), &mut page),
            Format::Xml => write_xml(&entries, &mut page),
        }
        // nginx sends the head before it knows the length of the list.
        Flow::Respond(Box::new(Response {
            status: 200,
            content_type: Some(content_type.into()),
            charset: (format == Format::Xml).then_some(b"utf-8"[..].into()),
            body: Body::Bytes(page.into()),
            ..Response::default()
        }))
    }
}

/// Reads a directory, hidden files left out: directories first, then by name. What went wrong is logged.
fn read(entries: std::fs::ReadDir, directory: &[u8], x: &Exchange) -> Result<Vec<Entry>, ()> {
    use std::os::unix::fs::MetadataExt;
    let mut found = vec![];
    for entry in entries {
        let entry = entry.map_err(|error| {
            let shown = String::from_utf8_lossy(directory);
            x.log_error(Level::Crit, Some(&error), format_args!("readdir() \"{shown}\" failed"));
        })?;
        let name = entry.file_name().into_vec();
        if name.starts_with(b".") {
            continue;
        }
        let failed = |call: &str, error: &io::Error| {
            let shown = entry.path().to_string_lossy().into_owned();
            x.log_error(Level::Crit, Some(error), format_args!("{call} \"{shown}\" failed"));
        };
        let metadata = match std::fs::metadata(entry.path()) {
            Ok(metadata) => metadata,
            // A link to nothing or to itself is listed as what it is.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) =>
            {
                entry.metadata().map_err(|error| failed("lstat()", &error))?
            }
            Err(error) => {
                failed("stat()", &error);
                if error.kind() == io::ErrorKind::PermissionDenied {
                    continue;
                }
                return Err(());
            }
        };
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Other,
        };
        found.push(Entry { name, kind, size: metadata.len(), modified: metadata.mtime() });
    }
    found.sort_by(|a, b| (a.kind != Kind::Directory, &a.name).cmp(&(b.kind != Kind::Directory, &b.name)));
    Ok(found)
}

/// The argument `callback`, `None` where it is empty or missing.
fn callback(x: &Exchange) -> Result<Option<Vec<u8>>, ()> {
    let arguments = x.args.split(|byte| *byte == b'&');
    let named = arguments.filter_map(|pair| pair.split_at_checked(9));
    let found = named.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(b"callback="));
    let Some((_, name)) = found else { return Ok(None) };
    let shown = String::from_utf8_lossy(name);
    if name.len() > 128 {
        x.log(Level::Info, format_args!("client sent too long callback name: \"{shown}\""));
        return Err(());
    }
    if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')) {
        x.log(Level::Info, format_args!("client sent invalid callback name: \"{shown}\""));
        return Err(());
    }
    Ok((!name.is_empty()).then(|| name.to_vec()))
}

/// The page; `offset` is the local time's, in seconds.
fn write_html(uri: &[u8], entries: &[Entry], offset: i64, exact: bool, utf8: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<html>\r\n<head><title>Index of ");
    escape_html(uri, out);
    out.extend_from_slice(b"</title></head>\r\n<body>\r\n<h1>Index of ");
    escape_html(uri, out);
    out.extend_from_slice(b"</h1><hr><pre><a href=\"../\">../</a>\r\n");
    for entry in entries {
        let directory = entry.kind == Kind::Directory;
        out.extend_from_slice(b"<a href=\"");
        escape(&entry.name, Escape::Component, out);
        out.extend_from_slice(if directory { b"/\">" } else { b"\">" });
        let text = if utf8 { std::str::from_utf8(&entry.name).ok() } else { None };
        let length = text.map_or(entry.name.len(), |text| text.chars().count());
        if length > NAME {
            let cut = text.and_then(|text| Some(text.char_indices().nth(NAME - 3)?.0)).unwrap_or(NAME - 3);
            escape_html(&entry.name[..cut], out);
            out.extend_from_slice(b"..&gt;</a>");
        } else {
            escape_html(&entry.name, out);
            let slash = directory && length < NAME;
            out.extend_from_slice(if slash { b"/</a>" } else { b"</a>" });
            out.resize(out.len() + NAME - length - usize::from(slash), b' ');
        }
        let time = date::http(entry.modified + offset);
        // `Fri, 13 Jul 2012 11:01:20 GMT` holds all that `13-Jul-2012 11:01` needs.
        let time = String::from_utf8_lossy(time.as_ref());
        let (date, clock) = (time.get(5..16).unwrap_or_default().replace(' ', "-"), time.get(17..22));
        let time = format!(" {date} {} ", clock.unwrap_or_default());
        out.extend_from_slice(time.as_bytes());
        let size = match (directory, exact) {
            (true, true) => format!("{:>19}", "-"),
            (true, false) => format!("{:>7}", "-"),
            (false, true) => format!("{:>19}", entry.size),
            (false, false) => short_size(entry.size),
        };
        out.extend_from_slice(size.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"</pre><hr></body>\r\n</html>\r\n");
}

/// A size in seven places, rounded to its unit.
fn short_size(size: u64) -> String {
    const K: u64 = 1024;
    let rounded = |unit: u64| size / unit + u64::from(size % unit > unit / 2 - 1);
    match size {
        0..=9999 => format!(" {size:>6}"),
        _ if size < K * K => format!("{:>6}K", rounded(K)),
        _ if size < K * K * K => format!("{:>6}M", rounded(K * K)),
        _ => format!("{:>6}G", rounded(K * K * K)),
    }
}

fn write_json(entries: &[Entry], callback: Option<&[u8]>, out: &mut Vec<u8>) {
    if let Some(callback) = callback {
        out.extend_from_slice(b"/* callback */\r\n");
        out.extend_from_slice(callback);
        out.push(b'(');
    }
    out.push(b'[');
    for (at, entry) in entries.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"\r\n{ \"name\":\"" } else { b",\r\n{ \"name\":\"" });
        escape_json(&entry.name, out);
        out.extend_from_slice(b"\", \"type\":\"");
        out.extend_from_slice(entry.kind.name().as_bytes());
        out.extend_from_slice(b"\", \"mtime\":\"");
        out.extend_from_slice(date::http(entry.modified).as_ref());
        out.push(b'"');
        if entry.kind == Kind::File {
            out.extend_from_slice(format!(", \"size\":{}", entry.size).as_bytes());
        }
        out.extend_from_slice(b" }");
    }
    out.extend_from_slice(b"\r\n]");
    if callback.is_some() {
        out.extend_from_slice(b");");
    }
}

fn write_xml(entries: &[Entry], out: &mut Vec<u8>) {
    out.extend_from_slice(b"<?xml version=\"1.0\"?>\r\n<list>\r\n");
    for entry in entries {
        let kind = entry.kind.name();
        let time = date::iso8601(entry.modified, 0);
        let time = String::from_utf8_lossy(time.as_ref());
        let size = if entry.kind == Kind::File { format!(" size=\"{}\"", entry.size) } else { String::new() };
        let open = format!("<{kind} mtime=\"{}Z\"{size}>", time.get(..19).unwrap_or_default());
        out.extend_from_slice(open.as_bytes());
        escape_html(&entry.name, out);
        out.extend_from_slice(format!("</{kind}>\r\n").as_bytes());
    }
    out.extend_from_slice(b"</list>\r\n");
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use super::*;
    use crate::testing::{Site, check_conf};

    fn entry(name: &str, kind: Kind, size: u64) -> Entry {
        Entry { name: name.into(), kind, size, modified: 0x5000_0000 }
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = vec![];
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pages() {
        let long = "n".repeat(51);
        let entries =
            [entry("d<", Kind::Directory, 0), entry("a b", Kind::File, 12345), entry(&long, Kind::Other, 1)];
        let page = text(|out| write_html(b"/x&/", &entries, 0, true, false, out));
        assert_eq!(
            page,
            format!(
                "<html>\r\n<head><title>Index of /x&amp;/</title></head>\r\n<body>\r\n<h1>Index of /x&amp;/</h1><hr>\
                 <pre><a href=\"../\">../</a>\r\n\
                 <a href=\"d%3C/\">d&lt;/</a>{:47} 13-Jul-2012 11:01                   -\r\n\
                 <a href=\"a%20b\">a b</a>{:47} 13-Jul-2012 11:01               12345\r\n\
                 <a href=\"{long}\">{}..&gt;</a> 13-Jul-2012 11:01                   1\r\n\
                 </pre><hr></body>\r\n</html>\r\n",
                "",
                "",
                &long[..47]
            )
        );
        let page = text(|out| write_html(b"/", &entries[..2], 3600, false, false, out));
        assert!(
            page.contains(" 13-Jul-2012 12:01       -\r\n") && page.contains(" 12:01     12K\r\n"),
            "{page}"
        );
    }

    #[test]
    fn names_of_characters() {
        let folder = Folder::new(&[("é".repeat(30).as_str(), b""), ("ü".repeat(60).as_str(), b"")]);
        let root = folder.path().display().to_string();
        let site = Site::new(&format!(
            "server {{ root {root}; autoindex on; charset utf-8; location /b/ {{ charset off; alias {root}/; }} }}"
        ));
        let page = site.get("/", "");
        let [whole, cut] = [
            format!(">{}</a>{} ", "é".repeat(30), " ".repeat(20)),
            format!(">{}..&gt;</a> ", "ü".repeat(47)),
        ];
        assert!(page.contains(&whole) && page.contains(&cut), "{page}");
        let page = site.get("/b/", "");
        assert!(page.contains(&format!(">{}\u{fffd}..&gt;</a> ", "é".repeat(23))), "{page}");
    }

    #[test]
    fn sizes() {
        for (size, expected) in [
            (0, "      0"),
            (9999, "   9999"),
            (10_000, "    10K"),
            (1_572_863, "     1M"),
            (1_572_864, "     2M"),
        ] {
            assert_eq!(short_size(size), expected);
        }
    }

    #[test]
    fn data() {
        let entries = [entry("d", Kind::Directory, 0), entry("a\"\x01", Kind::File, 5)];
        assert_eq!(
            text(|out| write_json(&entries, Some(b"f"), out)),
            "/* callback */\r\nf([\r\n\
             { \"name\":\"d\", \"type\":\"directory\", \"mtime\":\"Fri, 13 Jul 2012 11:01:20 GMT\" },\r\n\
             { \"name\":\"a\\\"\\u0001\", \"type\":\"file\", \"mtime\":\"Fri, 13 Jul 2012 11:01:20 GMT\", \"size\":5 }\r\n]);"
        );
        assert_eq!(text(|out| write_json(&[], None, out)), "[\r\n]");
        assert_eq!(
            text(|out| write_xml(&entries[..1], out)),
            "<?xml version=\"1.0\"?>\r\n<list>\r\n<directory mtime=\"2012-07-13T11:01:20Z\">d</directory>\r\n</list>\r\n"
        );
    }

    #[test]
    fn directories() {
        check_conf("autoindex_format text;", "invalid value \"text\"");
        let folder = Folder::new(&[("z/x", b""), ("b", b""), (".hidden", b""), ("i/index.html", b"index")]);
        let site = Site::new(&format!(
            "server {{ root {}; autoindex on; autoindex_format jsonp; }}",
            folder.path().display()
        ));
        let listed = site.ask("GET /", "");
        let names: Vec<_> =
            listed.split("\"name\":\"").skip(1).filter_map(|rest| rest.chars().next()).collect();
        assert_eq!(names, ['i', 'z', 'b']);
        assert!(listed.contains("Content-Type: application/json\n"), "{listed}");
        assert!(site.ask("GET /?callback=f.g", "").contains("\nf.g([\n"));
        for (uri, expected) in [("/?callback=f-g", "400"), ("/none/", "404"), ("/i/", "200 index")] {
            assert_eq!(site.short(uri), expected, "{uri}");
        }
    }
}
