//! Status lines and the pages nginx sends when there is nothing else to send.

use super::uri::{Escape, escape};

/// The status and its reason, as in a status line; `None` where nginx has no reason and writes the number and a space.
pub const fn line(status: u16) -> Option<&'static str> {
    Some(match status {
        200 => "200 OK",
        201 => "201 Created",
        202 => "202 Accepted",
        204 => "204 No Content",
        206 => "206 Partial Content",
        301 => "301 Moved Permanently",
        302 => "302 Moved Temporarily",
        303 => "303 See Other",
        304 => "304 Not Modified",
        307 => "307 Temporary Redirect",
        308 => "308 Permanent Redirect",
        400 => "400 Bad Request",
        401 => "401 Unauthorized",
        402 => "402 Payment Required",
        403 => "403 Forbidden",
        404 => "404 Not Found",
        405 => "405 Not Allowed",
        406 => "406 Not Acceptable",
        407 => "407 Proxy Authentication Required",
        408 => "408 Request Time-out",
        409 => "409 Conflict",
        410 => "410 Gone",
        411 => "411 Length Required",
        412 => "412 Precondition Failed",
        413 => "413 Request Entity Too Large",
        414 => "414 Request-URI Too Large",
        415 => "415 Unsupported Media Type",
        416 => "416 Requested Range Not Satisfiable",
        421 => "421 Misdirected Request",
        429 => "429 Too Many Requests",
        500 => "500 Internal Server Error",
        501 => "501 Not Implemented",
        502 => "502 Bad Gateway",
        503 => "503 Service Temporarily Unavailable",
        504 => "504 Gateway Time-out",
        505 => "505 HTTP Version Not Supported",
        507 => "507 Insufficient Storage",
        _ => return None,
    })
}

/// Appends `HTTP/1.1 `, the status and its reason, and the line end.
pub fn write_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    match line(status) {
        Some(line) => out.extend_from_slice(line.as_bytes()),
        None => {
            let digit = |unit: u16| b'0' + (status / unit % 10) as u8;
            if status > 999 {
                out.push(digit(1000));
            }
            out.extend_from_slice(&[digit(100), digit(10), digit(1), b' ']);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The status the client sees: 494 to 497 are nginx's own and shown as 400.
pub const fn shown(status: u16) -> u16 {
    match status {
        494..=497 => 400,
        status => status,
    }
}

/// Whether a response of this status ends the connection, whatever the client asked for.
pub const fn closes(status: u16) -> bool {
    matches!(status, 400 | 413 | 414 | 495 | 496 | 497 | 500 | 501)
}

/// What stands in a page: its title, its heading, and a second line.
struct Page {
    title: &'static str,
    heading: &'static str,
    second: &'static str,
}

const fn page(status: u16) -> Option<Page> {
    let title = match status {
        302 => "302 Found",
        401 => "401 Authorization Required",
        // What a client that went away would have been told.
        498 => "404 Not Found",
        494 => {
            return special("400 Request Header Or Cookie Too Large", "Request Header Or Cookie Too Large");
        }
        495 => return special("400 The SSL certificate error", "The SSL certificate error"),
        496 => {
            return special(
                "400 No required SSL certificate was sent",
                "No required SSL certificate was sent",
            );
        }
        497 => {
            return special(
                "400 The plain HTTP request was sent to HTTPS port",
                "The plain HTTP request was sent to HTTPS port",
            );
        }
        304 | 0..=300 => return None,
        status => match line(status) {
            Some(line) => line,
            None => return None,
        },
    };
    Some(Page { title, heading: title, second: "" })
}

const fn special(title: &'static str, second: &'static str) -> Option<Page> {
    Some(Page { title, heading: "400 Bad Request", second })
}

/// Whether there is a page for this status; without one, the body is empty and has no type.
pub const fn has_page(status: u16) -> bool {
    page(status).is_some()
}

/// Appends the `text/html` page of a status, nothing if it has none.
///
/// `signature` is what stands under the rule (`weir`, `weir/VERSION`, …: `server_tokens`). `padded` asks for the comment
/// that makes a page long enough for old browsers to show it (`msie_padding`); redirects never have it.
pub fn write_page(status: u16, signature: &str, padded: bool, out: &mut Vec<u8>) {
    let Some(page) = page(status) else { return };
    let mut write = |text: &str| out.extend_from_slice(text.as_bytes());
    write("<html>\r\n<head><title>");
    write(page.title);
    write("</title></head>\r\n<body>\r\n<center><h1>");
    write(page.heading);
    write("</h1></center>\r\n");
    if !page.second.is_empty() {
        write("<center>");
        write(page.second);
        write("</center>\r\n");
    }
    write("<hr><center>");
    write(signature);
    write("</center>\r\n</body>\r\n</html>\r\n");
    if padded && status >= 400 {
        for _ in 0..6 {
            write("<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n");
        }
    }
}

/// Appends the page that takes Internet Explorer elsewhere in place of a redirect (`msie_refresh`); it is sent with status 200.
pub fn write_refresh(location: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=");
    escape(location, Escape::Refresh, out);
    out.extend_from_slice(b"\"></head><body></body></html>\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a, to compare pages without keeping them.
    fn sum(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }

    /// Status, status line, and length and sum of the page, observed from nginx 1.31.5 with its name replaced.
    const OBSERVED: &[(u16, &str, usize, u64)] = &[
        (301, "HTTP/1.1 301 Moved Permanently", 161, 0x0188_fffd_cf56_2a3a),
        (302, "HTTP/1.1 302 Moved Temporarily", 137, 0xc6c7_36a1_3f29_d992),
        (303, "HTTP/1.1 303 See Other", 145, 0xc0c0_f10a_aca6_a146),
        (304, "HTTP/1.1 304 Not Modified", 0, 0xcbf2_9ce4_8422_2325),
        (307, "HTTP/1.1 307 Temporary Redirect", 163, 0x6d73_7f9f_27e1_4258),
        (308, "HTTP/1.1 308 Permanent Redirect", 163, 0x7b6b_f61e_45c4_7e9c),
        (400, "HTTP/1.1 400 Bad Request", 149, 0xbb69_d715_170b_19f2),
        (401, "HTTP/1.1 401 Unauthorized", 171, 0x2ad9_b1d7_94d4_afbc),
        (402, "HTTP/1.1 402 Payment Required", 159, 0x6e43_e980_a1d2_2ad0),
        (403, "HTTP/1.1 403 Forbidden", 145, 0x1e0e_67a1_f5b8_c24a),
        (404, "HTTP/1.1 404 Not Found", 145, 0x93b1_4ee3_dc63_e692),
        (405, "HTTP/1.1 405 Not Allowed", 149, 0x0422_24a4_92d9_eea6),
        (406, "HTTP/1.1 406 Not Acceptable", 155, 0xe499_d5ce_f23d_679c),
        (407, "HTTP/1.1 407 Proxy Authentication Required", 185, 0x7558_6802_ff34_431a),
        (409, "HTTP/1.1 409 Conflict", 143, 0xccf4_af6c_6d36_86b4),
        (410, "HTTP/1.1 410 Gone", 135, 0x3d2e_2e7d_eef9_387e),
        (411, "HTTP/1.1 411 Length Required", 157, 0xba82_a244_2708_0c36),
        (412, "HTTP/1.1 412 Precondition Failed", 165, 0x7a62_95d1_289f_49a2),
        (413, "HTTP/1.1 413 Request Entity Too Large", 175, 0xd675_a534_337d_97b0),
        (414, "HTTP/1.1 414 Request-URI Too Large", 169, 0x54fb_08fa_5773_42ca),
        (415, "HTTP/1.1 415 Unsupported Media Type", 171, 0xdce7_b2d9_0813_92a4),
        (416, "HTTP/1.1 416 Requested Range Not Satisfiable", 189, 0xecb9_fc64_cb3c_aeae),
        (421, "HTTP/1.1 421 Misdirected Request", 165, 0xaa77_ceb1_c4a4_55b6),
        (429, "HTTP/1.1 429 Too Many Requests", 161, 0x0bba_e0d9_6ba1_dbd2),
        (494, "HTTP/1.1 400 Bad Request", 225, 0xba79_ac88_b4e5_aa8c),
        (495, "HTTP/1.1 400 Bad Request", 207, 0x9389_dafb_fbb1_cf7c),
        (496, "HTTP/1.1 400 Bad Request", 229, 0xa77a_9d1f_9ae3_4144),
        (497, "HTTP/1.1 400 Bad Request", 247, 0x5e07_46ce_6024_8f6c),
        (498, "HTTP/1.1 498 ", 145, 0x93b1_4ee3_dc63_e692),
        (500, "HTTP/1.1 500 Internal Server Error", 169, 0xe374_0359_2ee3_d72e),
        (501, "HTTP/1.1 501 Not Implemented", 157, 0x0a31_9fc8_068d_30d6),
        (502, "HTTP/1.1 502 Bad Gateway", 149, 0x8dc2_0864_768f_247a),
        (503, "HTTP/1.1 503 Service Temporarily Unavailable", 189, 0xf099_b906_80e7_8982),
        (504, "HTTP/1.1 504 Gateway Time-out", 159, 0x509f_53b9_fb6d_ef90),
        (505, "HTTP/1.1 505 HTTP Version Not Supported", 179, 0xe31d_a8be_d843_b20c),
        (507, "HTTP/1.1 507 Insufficient Storage", 167, 0x8574_9d2b_2a89_a7c6),
    ];

    #[test]
    fn pages_are_those_of_nginx() {
        for status in (300..600).filter(|status| ![408, 444, 499].contains(status)) {
            let observed = OBSERVED.iter().find(|observed| observed.0 == status);
            let bare = format!("HTTP/1.1 {status} ");
            let (expected, len, expected_sum) =
                observed.map_or((bare.as_str(), 0, sum(b"")), |seen| (seen.1, seen.2, seen.3));
            let mut head = Vec::new();
            write_line(shown(status), &mut head);
            assert_eq!(String::from_utf8_lossy(&head), format!("{expected}\r\n"));
            let mut page = Vec::new();
            write_page(status, "weir", false, &mut page);
            assert_eq!((page.len(), sum(&page)), (len, expected_sum), "{}", String::from_utf8_lossy(&page));
            assert_eq!(has_page(status), len > 0);
        }
    }

    #[test]
    fn padding_is_for_errors() {
        let len = |status, padded| {
            let mut page = Vec::new();
            write_page(status, "weir", padded, &mut page);
            page.len()
        };
        assert_eq!(len(404, true), len(404, false) + 402);
        assert_eq!(len(301, true), len(301, false));
    }

    #[test]
    fn odd_numbers() {
        let mut out = Vec::new();
        write_line(99, &mut out);
        write_line(999, &mut out);
        assert_eq!(out, b"HTTP/1.1 099 \r\nHTTP/1.1 999 \r\n");
    }

    #[test]
    fn refresh_escapes_its_target() {
        let mut page = Vec::new();
        write_refresh(b"http://h/a b\"'%20#", &mut page);
        let expected = "<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=http://h/a%20b%22%27%20#\"></head><body></body></html>\r\n";
        assert_eq!(String::from_utf8_lossy(&page), expected);
    }
}
