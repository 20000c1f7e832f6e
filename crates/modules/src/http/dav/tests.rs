use std::os::unix::fs::PermissionsExt;

use weir_testkit::Folder;

use crate::testing::{Site, check_conf, code, header};

#[test]
fn messages() {
    for (conf, message) in [
        ("dav_methods off; dav_methods put DELETE mkcol copy move; dav_access group:rw all:r;", ""),
        ("dav_methods get;", "invalid value \"get\""),
        ("dav_methods PUT put;", "duplicate value \"put\""),
        ("dav_access user:x;", "invalid value \"user:x\""),
        ("dav_access foo:rw;", "invalid value \"foo:rw\""),
        ("dav_access user:rw; dav_access user:r;", "\"dav_access\" directive is duplicate"),
        ("min_delete_depth x;", "\"min_delete_depth\" directive invalid number"),
        (
            "create_full_put_path x;",
            "invalid value \"x\" in \"create_full_put_path\" directive, it must be \"on\" or \"off\"",
        ),
    ] {
        check_conf(conf, message);
    }
}

/// A site with everything allowed below `files`.
struct Files {
    site: Site,
    folder: Folder,
}

impl Files {
    fn new() -> Self {
        let folder = Folder::new(&[
            ("files/a", b"a"),
            ("files/d/x", b"x"),
            ("files/d/e/y", b"y"),
            ("tmp/.keep", b""),
            ("outside", b"o"),
        ]);
        let site = Site::new(&format!(
            "client_body_temp_path {0}/tmp; server {{ root {0}/files; dav_methods put delete mkcol copy move;
             location / {{ }} location /full {{ create_full_put_path on; dav_access user:rw group:rw all:r; }}
             location /deep {{ min_delete_depth 3; }} location /off {{ dav_methods off; }}
             location /al/ {{ alias {0}/files/; }} }}",
            folder.path().display()
        ));
        Self { site, folder }
    }

    fn ask(&self, request: &str, headers: &str, body: &str) -> String {
        let text =
            format!("{request} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{headers}\r\n{body}");
        self.site.raw(text.as_bytes())
    }

    #[track_caller]
    fn check(&self, request: &str, headers: &str, expected: &str) {
        assert_eq!(code(&self.ask(request, headers, "")), expected, "{request} {headers}");
    }

    #[track_caller]
    fn put(&self, uri: &str, body: &str, expected: &str) -> String {
        let length = format!("Content-Length: {}\r\n", body.len());
        let answer = self.ask(&format!("PUT {uri}"), &length, body);
        assert_eq!(code(&answer), expected, "{uri}");
        answer
    }

    /// Files and directories, in order.
    fn tree(&self) -> String {
        fn walk(path: &std::path::Path, name: &str, all: &mut Vec<String>) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
                if path.is_dir() && !path.is_symlink() {
                    all.push(format!("{name}/"));
                    walk(&path, &name, all);
                } else {
                    all.push(name);
                }
            }
        }
        let mut all = vec![];
        walk(&self.folder.path().join("files"), "", &mut all);
        all.sort();
        all.join(" ")
    }
}

#[test]
fn put() {
    let files = Files::new();
    let answer = files.put("/new%20one", "text", "201");
    assert_eq!(header(&answer, "Location"), Some("http://a.example/new%20one"));
    assert_eq!(header(&answer, "Content-Length"), Some("0"));
    assert_eq!(files.folder.read("files/new one"), "text");
    let answer = files.put("/new%20one", "", "204");
    assert_eq!((header(&answer, "Location"), files.folder.read("files/new one")), (None, String::new()));
    let large = "x".repeat(100_000);
    files.put("/full/of/it", &large, "201");
    assert_eq!(files.folder.read("files/full/of/it"), large);
    let mode = |name: &str| files.folder.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("files/full/of/it"), mode("files/a")), (0o664, mode("outside")));
    assert_eq!(mode("files/new one"), 0o600);
    files.put("/no/path", "x", "500");
    files.put("/d", "x", "409");
    files.put("/d/", "x", "409");
    files.put("/off", "x", "405");
    files.put("/al/b", "x", "201");
    files.put("/../outside", "x", "400");
    files.put("/%2e%2e/outside", "x", "400");
    files.check("PUT /a", "Content-Range: bytes 0-1/2\r\nContent-Length: 0\r\n", "501");
    files.check("PUT /a", "", "500");
    let dated = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(code(&files.ask("PUT /a", dated, "3\r\nabc\r\n0\r\n\r\n")), "204");
    let modified = files.folder.path().join("files/a").metadata().unwrap().modified().unwrap();
    let modified = modified.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((files.folder.read("files/a").as_str(), modified), ("abc", 784_111_777));
    assert_eq!(files.folder.read("outside"), "o");
    assert_eq!(
        std::fs::read_dir(files.folder.path().join("tmp")).unwrap().count(),
        1,
        "nothing is left behind"
    );
    assert_eq!(files.tree(), "/a /b /d/ /d/e/ /d/e/y /d/x /full/ /full/of/ /full/of/it /new one");
}

#[test]
fn delete() {
    let files = Files::new();
    let root = files.folder.path().join("files");
    std::os::unix::fs::symlink("../outside", root.join("d/link")).unwrap();
    std::os::unix::fs::symlink("..", root.join("d/up")).unwrap();
    files.check("DELETE /none", "", "404");
    files.check("DELETE /a/b", "", "409");
    files.check("DELETE /a/", "", "409");
    files.check("DELETE /d", "", "409");
    files.check("DELETE /d/", "Depth: 0\r\n", "400");
    files.check("DELETE /a", "Depth: 1\r\n", "400");
    files.check("DELETE /a", "Depth: 2\r\n", "400");
    files.check("DELETE /a", "Content-Length: 1\r\n", "415");
    files.check("DELETE /deep/er/", "", "409");
    files.check("DELETE /deep/er/x", "", "404");
    files.check("DELETE /a", "Depth: 0\r\n", "204");
    files.check("DELETE /d/", "Depth: infinity\r\n", "204");
    assert_eq!((files.tree().as_str(), files.folder.read("outside").as_str()), ("", "o"));
}

#[test]
fn collections() {
    let files = Files::new();
    let answer = files.ask("MKCOL /n/", "", "");
    assert_eq!((code(&answer), header(&answer, "Location")), ("201", Some("http://a.example/n/")));
    files.check("MKCOL /n/", "", "405");
    files.check("MKCOL /m", "", "409");
    files.check("MKCOL /no/m/", "", "409");
    files.check("MKCOL /m/", "Content-Length: 1\r\n", "415");
}

#[test]
fn copy_and_move() {
    let files = Files::new();
    let check = |request: &str, destination: &str, more: &str, expected: &str| {
        files.check(request, &format!("Destination: {destination}\r\n{more}"), expected);
    };
    files.check("COPY /a", "", "400");
    check("COPY /a", "b", "", "400");
    check("COPY /a", "http://b.example/b", "", "400");
    check("COPY /a", "https://a.example/b", "", "400");
    check("COPY /a", "http://a.example", "", "400");
    check("COPY /a", "/../outside", "", "400");
    check("COPY /a", "/%2e%2e/outside", "", "400");
    check("COPY /al/a", "/b", "", "400");
    check("COPY /a", "/b/", "", "409");
    check("COPY /a", "/d", "", "409");
    check("COPY /d", "/n", "", "400");
    check("COPY /a", "/a", "", "403");
    check("COPY /a", "//a", "", "403");
    check("COPY /d/", "/d/n/", "", "403");
    check("COPY /d/e/", "/d/", "", "403");
    check("COPY /none", "/n", "", "404");
    check("COPY /a", "/d/x", "Overwrite: F\r\n", "412");
    check("COPY /a", "/d/x", "Overwrite: x\r\n", "400");
    check("COPY /a", "/b", "Depth: 1\r\n", "400");
    check("MOVE /a", "/b", "Depth: 0\r\n", "400");
    assert_eq!(files.tree(), "/a /d/ /d/e/ /d/e/y /d/x");
    check("COPY /a", "http://a.example/d/x", "Depth: 0\r\n", "204");
    assert_eq!(files.folder.read("files/d/x"), "a");
    check("COPY /d/", "/c/", "", "201");
    check("MOVE /a", "/p/q/a%20b", "", "204");
    assert_eq!(files.tree(), "/c/ /c/e/ /c/e/y /c/x /d/ /d/e/ /d/e/y /d/x /p/ /p/q/ /p/q/a b");
    check("MOVE /d/", "/c/", "", "201");
    check("MOVE /al/c/", "/al/z/", "", "201");
    assert_eq!(files.tree(), "/p/ /p/q/ /p/q/a b /z/ /z/e/ /z/e/y /z/x");
    assert_eq!(files.folder.read("outside"), "o");
}
