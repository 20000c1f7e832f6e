//! What a proxy tells of its client must not panic, and must not depend on what follows it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_engine::proxy_protocol::parse;

fuzz_target!(|wire: &[u8]| {
    let Ok((taken, header)) = parse(wire) else { return };
    assert_eq!(parse(&wire[..taken]), Ok((taken, header.clone())));
    let Some(header) = header else { return };
    for name in ["alpn", "ssl", "ssl_verify", "ssl_cn", "ssl_0x21", "0xea"] {
        let _ = header.tlv(name, &mut vec![]);
    }
});
