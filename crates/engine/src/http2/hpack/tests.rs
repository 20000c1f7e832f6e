//! The examples of RFC 7541 appendix C, what nginx says of blocks that are not right, and blocks there and back.

use proptest::prelude::*;

use super::table::Table;
use super::*;

const LIMITS: Limits = Limits { field: 8192, list: 32768 };

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |c: u8| char::from(c).to_digit(16).expect("a digit") as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn text((name, value): (&[u8], &[u8])) -> String {
    format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
}

fn entries(table: &Table) -> Vec<String> {
    (0..table.len()).filter_map(|age| table.get(age)).map(text).collect()
}

/// Decodes one more block: its fields, then the table with the newest entry first.
#[track_caller]
fn decodes(decoder: &mut Decoder, block: &str, fields: &[&str], table: &[&str]) {
    let mut found = Fields::default();
    assert_eq!(whole(decoder, &bytes(block), LIMITS, &mut found), Ok(()));
    assert_eq!((found.iter().map(text).collect::<Vec<_>>(), found.len()), (owned(fields), fields.len()));
    assert_eq!(entries(&decoder.table), table);
}

/// What is not whole.
const CUT: Fault = Fault { code: 6, message: "cut" };

/// Reads a block that is to be whole.
fn whole(decoder: &mut Decoder, block: &[u8], mut limits: Limits, fields: &mut Fields) -> Result<(), Fault> {
    match decoder.decode(block, false, &mut limits, fields)? {
        n if n == block.len() => Ok(()),
        _ => Err(CUT),
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn each_form_of_a_field() {
    let custom = ["custom-key: custom-header"];
    decodes(
        &mut Decoder::new(),
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        &custom,
        &custom,
    );
    decodes(&mut Decoder::new(), "040c 2f73 616d 706c 652f 7061 7468", &[":path: /sample/path"], &[]);
    decodes(&mut Decoder::new(), "1008 7061 7373 776f 7264 0673 6563 7265 74", &["password: secret"], &[]);
    decodes(&mut Decoder::new(), "82", &[":method: GET"], &[]);
}

#[test]
fn requests_of_the_rfc() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let get = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
    let again = [
        ":method: GET",
        ":scheme: http",
        ":path: /",
        ":authority: www.example.com",
        "cache-control: no-cache",
    ];
    let index = [
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ];
    let table = ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"];
    let requests = [&get[..], &again, &index];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new();
        for (turn, fields) in requests.into_iter().enumerate() {
            decodes(&mut decoder, blocks[turn], fields, &table[2 - turn..]);
        }
    }
    let mut encoder = Encoder::new();
    for (turn, fields) in requests.into_iter().enumerate() {
        let mut block = Vec::new();
        for field in fields {
            let (name, value) = field.rsplit_once(": ").expect("a field");
            encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
        }
        assert_eq!(block, bytes(huffman[turn]));
    }
}

#[test]
fn responses_of_the_rfc_in_a_table_of_256() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
         474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
         666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
         3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
         b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let location = "location: https://www.example.com";
    let date = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    let later = "date: Mon, 21 Oct 2013 20:13:22 GMT";
    let private = "cache-control: private";
    let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let gzip = "content-encoding: gzip";
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new();
        // The tables of the examples have 256 bytes from the start.
        decodes(&mut decoder, "3fe1 01", &[], &[]);
        let table = [location, date, private, ":status: 302"];
        decodes(&mut decoder, blocks[0], &[":status: 302", private, date, location], &table);
        let table = [":status: 307", location, date, private];
        decodes(&mut decoder, blocks[1], &[":status: 307", private, date, location], &table);
        let fields = [":status: 200", private, later, location, gzip, cookie];
        decodes(&mut decoder, blocks[2], &fields, &[cookie, gzip, later]);
    }
}

/// Decodes a block into fields behind one that is there already.
#[track_caller]
fn refuses(block: &[u8], code: u32, message: &str) {
    let mut fields = Fields::default();
    fields.push(b"before", b"");
    let limits = Limits { field: 20, list: 30 };
    let fault = whole(&mut Decoder::new(), block, limits, &mut fields).expect_err("it is not right");
    assert_eq!((fault.code, fault.message), (code, message));
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert_eq!((bytes, fields.iter().next()), (fields.bytes.len(), Some((&b"before"[..], &b""[..]))));
}

#[test]
fn what_is_not_right_ends_the_connection_in_the_words_of_nginx() {
    let cut = CUT.message;
    let broken = "client sent invalid encoded header field";
    refuses(b"\x82\x80", 9, "client sent invalid hpack table index 0");
    refuses(b"\xbe", 9, "client sent out of bound hpack table index");
    refuses(b"\x7e\x01a", 9, "client sent out of bound hpack table index");
    refuses(b"\x40\x01a\x01b\xbf", 9, "client sent out of bound hpack table index");
    refuses(b"\x20\x40\x01a\x01b\xbe", 9, "client sent out of bound hpack table index");
    refuses(b"\x3f\xe2\x1f", 9, "client sent invalid table size update");
    refuses(b"\x3f\x80\x80\x80\x80", 9, "client sent header block with too long size update value");
    refuses(b"\xff\x80\x80\x80\x00", 9, "client sent header block with too long header index value");
    refuses(b"\x0f\x80\x80\x80\x00", 9, "client sent header block with too long header index value");
    for start in [b"\x3f", b"\xff", b"\x7f", b"\x0f"] {
        for octets in [&b""[..], b"\x80", b"\x80\x80", b"\x80\x80\x80"] {
            refuses(&[start, octets].concat(), 6, cut);
        }
    }
    refuses(b"\x00\x7f\x80\x80\x80\x00", 9, "client sent header field with too long length value");
    refuses(b"\x00\x7f\x80\x80\x80", 6, cut);
    refuses(b"\x00", 6, cut);
    refuses(b"\x41", 6, cut);
    refuses(b"\x00\x01a", 6, cut);
    refuses(b"\x00\x01a\x02b", 6, cut);
    refuses(b"\x00\x02a", 6, cut);
    refuses(b"\x00\x82\x00", 6, cut);
    refuses(b"\x00\x81\x00", 9, broken);
    refuses(b"\x00\x01a\x84\xff\xff\xff\xff", 9, broken);
    refuses(b"\x00\x00\x01b", 1, "client sent zero header name length");
    refuses(b"\x40\x80\x01b", 1, "client sent zero header name length");
    refuses(b"\x00\x81\xff\x01b", 1, "client sent zero header name length");
    refuses(&[&b"\x00\x15"[..], &[b'a'; 21], b"\x00"].concat(), 11, "client sent too large header field");
    refuses(&[&b"\x01\x15"[..], &[b'a'; 21]].concat(), 11, "client sent too large header field");
    refuses(b"\x00\x15", 11, "client sent too large header field");
    refuses(
        &[&b"\x00\x0f"[..], &[b'a'; 15], b"\x10", &[b'b'; 16]].concat(),
        11,
        "client sent too large header",
    );
    refuses(b"\x87\x87\x87", 11, "client sent too large header");
}

#[test]
fn a_block_comes_in_pieces() {
    let block = bytes(
        "8286 8441 8cf1e3 c2e5f2 3a6ba0 ab90f4ff 4088 25a849e9 5ba97d7f 8925 a849e95b b8e8b4bf 3f e1 1f",
    );
    let mut expected = Fields::default();
    whole(&mut Decoder::new(), &block, LIMITS, &mut expected).expect("it is right");
    assert_eq!(expected.len(), 5);
    for cut in 0..=block.len() {
        let (mut decoder, mut limits, mut fields) = (Decoder::new(), LIMITS, Fields::default());
        let n = decoder.decode(&block[..cut], true, &mut limits, &mut fields).expect("it is right");
        assert!(n <= cut);
        assert_eq!(
            decoder.decode(&block[n..], false, &mut limits, &mut fields),
            Ok(block.len() - n),
            "{cut}"
        );
        assert_eq!(fields, expected, "{cut}");
        assert_eq!(entries(&decoder.table), ["custom-key: custom-value", ":authority: www.example.com"]);
    }
    // Of a number that has gone on for as long as it may, nobody waits for the rest.
    let read =
        |more| Decoder::new().decode(b"\xff\xff\xff\xff", more, &mut { LIMITS }, &mut Fields::default());
    assert_eq!(read(false), Ok(0));
    assert_eq!(read(true).map_err(|fault| fault.code), Err(9));
}

#[test]
fn a_whole_byte_of_padding_is_taken_as_nginx_does() {
    decodes(&mut Decoder::new(), "4082 1fff 0131", &["a: 1"], &["a: 1"]);
    decodes(&mut Decoder::new(), "0084 1fff ffff 83ff ffff", &["a: "], &[]);
}

#[test]
fn limits_are_what_may_be_there() {
    let limits = Limits { field: 20, list: 30 };
    let mut fields = Fields::default();
    // 15 and 15 bytes; then the limit of a block begins anew. 20 bytes of `0` are 32, which are too many.
    let block = [&b"\x40\x0f"[..], &[b'a'; 15], b"\x0f", &[b'b'; 15]].concat();
    let mut decoder = Decoder::new();
    assert_eq!(whole(&mut decoder, &block, limits, &mut fields), Ok(()));
    assert_eq!(whole(&mut decoder, b"\xbe", limits, &mut fields), Ok(()));
    assert_eq!(fields.len(), 2);
    let too_large = Fault { code: 11, message: "client sent too large header" };
    assert_eq!(whole(&mut decoder, b"\xbe\xbe", limits, &mut fields), Err(too_large));
    assert_eq!(fields.len(), 3);
    let zeros = [&b"\x04\x94"[..], &[0; 20]].concat();
    assert_eq!(whole(&mut decoder, &zeros, limits, &mut fields), Err(too_large));
    assert_eq!((fields.len(), fields.bytes.len()), (3, 90));
}

#[test]
fn references_to_a_large_entry_cost_no_more_than_the_limit() {
    let block = [&b"\x40\x01a\x7f\x80\x1e"[..], &[b'x'; 3967], &[0xbe; 10_000]].concat();
    let mut fields = Fields::default();
    let mut decoder = Decoder::new();
    let fault = whole(&mut decoder, &block, LIMITS, &mut fields).expect_err("it is too much");
    assert_eq!((fault.code, fields.len()), (11, LIMITS.list / 3968));
    assert_eq!((decoder.table.len(), fields.bytes.len()), (1, fields.len() * 3968));
}

#[test]
fn a_name_stays_right_though_its_insertion_evicts_it() {
    let mut decoder = Decoder::new();
    // A table of 40 bytes holds one entry.
    decodes(&mut decoder, "3f09 4004 6e61 6d65 0131", &["name: 1"], &["name: 1"]);
    decodes(&mut decoder, "7e02 3232 be", &["name: 22", "name: 22"], &["name: 22"]);
    // It is larger than the table now, which ends empty.
    decodes(&mut decoder, "7e05 3333 3333 33", &["name: 33333"], &[]);
}

#[test]
fn sizes_are_taken_anywhere() {
    let mut decoder = Decoder::new();
    decodes(
        &mut decoder,
        "4001 6101 31 20 3fe1 1f 4001 6201 32 82",
        &["a: 1", "b: 2", ":method: GET"],
        &["b: 2"],
    );
}

/// Encodes fields as one block.
fn block(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
    }
    block
}

#[test]
fn statuses() {
    let mut encoder = Encoder::new();
    let mut block = Vec::new();
    for status in [200, 204, 206, 304, 400, 404, 500, 302, 302, 307, 999] {
        encoder.status(status, &mut block);
    }
    assert_eq!(block, bytes("8889 8a8b 8c8d 8e 4882 6402 be 4803 3330 37 4803 3939 39"));
}

#[test]
fn what_changes_with_each_response_is_kept_out_of_the_table() {
    let mut encoder = Encoder::new();
    let long = "x".repeat(1025);
    let fields = [
        ("Content-Length", "12"),
        ("etag", "\"a\""),
        ("last-modified", "b"),
        ("location", "c"),
        ("Set-Cookie", "d"),
        ("age", "1"),
        ("content-range", "e"),
        ("expires", "f"),
        ("x-long", &long),
        ("content-type", &long),
    ];
    let first = block(&mut encoder, &fields);
    assert_eq!(block(&mut encoder, &fields), first);
    assert!(first.starts_with(b"\x0f\x0d\x0212\x0f\x13"), "{first:02x?}");
    // Never indexed: 0001, and 55 behind the 15 of the prefix.
    assert!(first.windows(4).any(|four| four == [0x0f, 40, 1, b'd']));
    let kept = [("date", "a"), ("Server", "weir"), ("x-a", "b"), ("vary", &long[1..])];
    block(&mut encoder, &kept);
    assert_eq!(block(&mut encoder, &kept), b"\xc1\xc0\xbf\xbe");
    // The name is that of an entry, whatever its value.
    assert!(block(&mut encoder, &[("x-a", "c")]).starts_with(b"\x7f\x00\x01"));
}

#[test]
fn fields_whose_hashes_are_alike_are_told_apart() {
    let mut encoder = Encoder::new();
    block(&mut encoder, &[("x-a", "1")]);
    assert_eq!(block(&mut encoder, &[("x-a", "1\0")]), b"\x7e\x021\0");
    assert_eq!(block(&mut encoder, &[("x-a\0", "1")]), b"\x40\x04x-a\0\x011");
}

#[test]
fn the_next_block_begins_with_the_sizes_since_the_last() {
    let mut encoder = Encoder::new();
    let entry = [("a", "1")];
    encoder.resize(65536);
    assert_eq!(block(&mut encoder, &entry), b"\x40\x01a\x011");
    encoder.resize(0);
    assert_eq!(block(&mut encoder, &entry), b"\x20\x00\x01a\x011");
    encoder.resize(100);
    assert_eq!(block(&mut encoder, &entry), b"\x3f\x45\x40\x01a\x011");
    assert_eq!(block(&mut encoder, &entry), b"\xbe");
    // An entry that would not fit empties no table.
    block(&mut encoder, &[("b", &"x".repeat(68))]);
    assert_eq!(block(&mut encoder, &entry), b"\xbe");
    for size in [200, 10, 4096, 300] {
        encoder.resize(size);
    }
    let mut status = Vec::new();
    encoder.status(200, &mut status);
    assert_eq!(status, b"\x2a\x3f\x8d\x02\x88");
    assert_eq!(block(&mut encoder, &entry), b"\x40\x01a\x011");
    encoder.resize(300);
    assert_eq!(block(&mut encoder, &entry), b"\xbe");
}

#[derive(Clone, Debug)]
enum Act {
    Resize(u32),
    Field(Vec<u8>, Vec<u8>),
    Block,
}

fn act() -> impl Strategy<Value = Act> {
    let name = prop_oneof![
        prop::sample::select(table::STATIC.map(|entry| entry.0.as_bytes().to_vec()).to_vec()),
        "[a-cX-Z-]{1,3}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 1..60),
    ];
    let value = prop_oneof![
        Just(b"gzip, deflate".to_vec()),
        "[0-3]{0,2}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..300),
        (900..1100usize).prop_map(|length| vec![b'x'; length]),
    ];
    prop_oneof![
        1 => prop_oneof![0..200u32, 0..10_000u32].prop_map(Act::Resize),
        2 => Just(Act::Block),
        12 => (name, value).prop_map(|(name, value)| Act::Field(name, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_come_back(acts in prop::collection::vec(act(), 0..200)) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let (mut expected, mut block) = (Fields::default(), Vec::new());
        for act in acts.into_iter().chain([Act::Block]) {
            match act {
                // Sizes change between blocks only.
                Act::Resize(size) if block.is_empty() => encoder.resize(size),
                Act::Resize(_) => {}
                Act::Field(name, value) => {
                    encoder.field(&name, &value, &mut block);
                    expected.push(&name.to_ascii_lowercase(), &value);
                }
                // Nothing is said without a field.
                Act::Block if block.is_empty() => {}
                Act::Block => {
                    let mut fields = Fields::default();
                    let limits = Limits { field: 2000, list: usize::MAX };
                    prop_assert_eq!(whole(&mut decoder, &block, limits, &mut fields), Ok(()));
                    prop_assert_eq!(&fields, &expected);
                    prop_assert_eq!(entries(&decoder.table), entries(&encoder.table));
                    expected.clear();
                    block.clear();
                }
            }
        }
    }

    #[test]
    fn any_bytes_stay_within_the_limits(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let mut fields = Fields::default();
            let result = whole(&mut decoder, &block, Limits { field: 50, list: 200 }, &mut fields);
            let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes <= 200 && bytes == fields.bytes.len());
            if result.is_err() {
                break;
            }
        }
    }
}
