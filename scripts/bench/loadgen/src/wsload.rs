//! WebSocket load.  --mode ping (default): every connection ping-pongs --size byte messages,
//! --messages in total.  --mode up: one-way flood client to server (path /sink/BYTES).
//! --mode down: one-way flood server to client (path /flood/N/SIZE).
//! --pace-ms P (ping only): wait P ms between a reply and the next message of a connection.
use crate::{cli::Opts, hist::Hist, sys, wsproto};
use std::time::{Duration, Instant};

struct C {
    fd: i32,
    need: usize,
    got: usize,
    t0: Instant,
    out_off: usize,
    out_left: u64,
    due: Instant,
    waiting: bool,
}

pub fn frame(size: usize, seed: u8) -> Vec<u8> {
    let mut f = Vec::new();
    let k = [0x12 ^ seed, 0x34, 0x56, 0x78 ^ seed];
    wsproto::header(&mut f, 2, size, Some(k));
    let mut p: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    wsproto::xor(&mut p, k);
    f.extend_from_slice(&p);
    f
}

pub fn run(o: &Opts) {
    let addr = sys::v4(&o.str("addr", "127.0.0.1:8080"));
    let conns = o.num("conns", 200) as usize;
    let size = o.num("size", 125) as usize;
    let total = o.num("messages", 200_000);
    let mode = o.str("mode", "ping");
    let host = o.str("host", "bench.test");
    let pace = Duration::from_millis(o.num("pace-ms", 0));
    let dur = o.num("duration", 0);
    let per = (total / conns as u64).max(1);
    let f = frame(size, 7);
    let reply_hdr = if size < 126 {
        2
    } else if size < 65536 {
        4
    } else {
        10
    };
    let path = match mode.as_str() {
        "ping" => o.str("path", "/echo"),
        "up" => format!("/sink/{}", per * f.len() as u64),
        "down" => format!("/flood/{per}/{size}"),
        _ => panic!("mode"),
    };
    let mut ep = sys::Epoll::new();
    let mut cs: Vec<C> = Vec::new();
    let mut errors = 0u64;
    let mut first_error = String::new();
    let mut down_bytes = 0u64;
    for i in 0..conns {
        let r = sys::connect(&addr, None).map_err(|e| e.to_string()).and_then(|fd| {
            sys::set_timeout(fd, 10);
            match wsproto::open(fd, &host, &path, i as u64 + 1) {
                Ok(rest) => Ok((fd, rest)),
                Err(e) => {
                    sys::close(fd);
                    Err(e)
                }
            }
        });
        match r {
            Ok((fd, rest)) => {
                sys::set_nonblock(fd);
                let now = Instant::now();
                cs.push(C {
                    fd,
                    need: reply_hdr + size,
                    got: rest.len(),
                    t0: now,
                    out_off: 0,
                    out_left: per,
                    due: now,
                    waiting: false,
                });
                down_bytes += rest.len() as u64;
            }
            Err(e) => {
                errors += 1;
                if first_error.is_empty() {
                    first_error = e;
                }
            }
        }
    }
    // the driver takes its first CPU sample when it sees this line, if asked to
    if o.flag("sync") {
        println!("READY");
        let mut s = String::new();
        let _ = std::io::stdin().read_line(&mut s);
    }
    let mut h = Hist::new();
    let t_start = Instant::now();
    let mut live = cs.len();
    let mut done = 0u64;
    let mut bytes = 0u64;
    let mut buf = vec![0u8; 1 << 18];
    match mode.as_str() {
        "ping" => {
            let mut started = 0u64;
            for (i, c) in cs.iter_mut().enumerate() {
                c.t0 = Instant::now();
                started += 1;
                if sys::send(c.fd, &f) != f.len() as isize {
                    errors += 1;
                }
                ep.add(c.fd, i as u64, sys::IN);
            }
            let mut last = Instant::now();
            let mut bad = 0u64;
            while live > 0 {
                let n = ep.wait(if pace.is_zero() { 1000 } else { 5 });
                let now = Instant::now();
                if !pace.is_zero() {
                    for c in cs.iter_mut() {
                        if c.waiting && c.due <= now && c.fd >= 0 {
                            c.waiting = false;
                            if dur > 0 && t_start.elapsed().as_secs() >= dur {
                                sys::close(c.fd);
                                c.fd = -1;
                                live -= 1;
                                continue;
                            }
                            c.t0 = now;
                            if sys::send(c.fd, &f) != f.len() as isize {
                                errors += 1;
                            }
                        }
                    }
                }
                if n == 0 {
                    if last.elapsed().as_secs() > 15 {
                        errors += live as u64;
                        first_error = "stalled".into();
                        break;
                    }
                    continue;
                }
                last = now;
                for i in 0..n {
                    let c = &mut cs[ep.evs[i].u64 as usize];
                    if c.fd < 0 {
                        continue;
                    }
                    let r = sys::recv(c.fd, &mut buf);
                    if r <= 0 {
                        if r < 0 && sys::would_block() {
                            continue;
                        }
                        errors += 1;
                        if first_error.is_empty() {
                            first_error = format!("closed by peer ({r})");
                        }
                        sys::close(c.fd);
                        c.fd = -1;
                        live -= 1;
                        continue;
                    }
                    if c.got == 0 && r as usize >= 8 && size >= 16 {
                        // verify the start of the echoed payload
                        if buf[0] != 0x82 || buf[reply_hdr] != 7 || buf[reply_hdr + 1] != 38 {
                            bad += 1;
                        }
                    }
                    c.got += r as usize;
                    if c.got > c.need {
                        bad += 1;
                    }
                    if c.got >= c.need {
                        c.got = 0;
                        done += 1;
                        h.add((now - c.t0).as_nanos() as u64);
                        if !pace.is_zero() {
                            c.waiting = true;
                            c.due = now + pace;
                            continue;
                        }
                        let go = if dur > 0 { t_start.elapsed().as_secs() < dur } else { started < total };
                        if go {
                            started += 1;
                            c.t0 = Instant::now();
                            let s = sys::send(c.fd, &f);
                            if s != f.len() as isize {
                                if s > 0 || sys::would_block() {
                                    let _ = sys::send_all_blocking(c.fd, &f[s.max(0) as usize..]);
                                } else {
                                    errors += 1;
                                }
                            }
                        } else {
                            sys::close(c.fd);
                            c.fd = -1;
                            live -= 1;
                        }
                    }
                }
            }
            bytes = done * f.len() as u64;
            errors += bad;
            if bad > 0 {
                first_error = format!("{bad} bad echoes");
            }
        }
        "up" => {
            // one big block of whole frames, sent round and round
            let reps = (65536 / f.len()).max(1);
            let block: Vec<u8> = f.iter().copied().cycle().take(f.len() * reps).collect();
            for (i, c) in cs.iter_mut().enumerate() {
                c.out_left = per * f.len() as u64;
                ep.add(c.fd, i as u64, sys::IN | sys::OUT);
            }
            let mut last = Instant::now();
            while live > 0 {
                let n = ep.wait(1000);
                if n == 0 {
                    if last.elapsed().as_secs() > 15 {
                        errors += live as u64;
                        first_error = "stalled".into();
                        break;
                    }
                    continue;
                }
                last = Instant::now();
                for i in 0..n {
                    let tok = ep.evs[i].u64;
                    let evs = ep.evs[i].events;
                    let c = &mut cs[tok as usize];
                    if c.fd < 0 {
                        continue;
                    }
                    if evs & sys::OUT != 0 && c.out_left > 0 {
                        let k = ((block.len() - c.out_off) as u64).min(c.out_left) as usize;
                        let s = sys::send(c.fd, &block[c.out_off..c.out_off + k]);
                        if s > 0 {
                            c.out_off = (c.out_off + s as usize) % block.len();
                            c.out_left -= s as u64;
                            bytes += s as u64;
                        }
                        if c.out_left == 0 {
                            ep.modify(c.fd, tok, sys::IN);
                        }
                    }
                    if evs & sys::IN != 0 {
                        let r = sys::recv(c.fd, &mut buf);
                        if r < 0 && sys::would_block() {
                            continue;
                        }
                        if r < 3 {
                            errors += 1;
                            first_error = format!("closed by peer ({r})");
                        } else {
                            done += per;
                        }
                        sys::close(c.fd);
                        c.fd = -1;
                        live -= 1;
                    }
                }
            }
        }
        _ => {
            let want = per * (reply_hdr + size) as u64;
            bytes = down_bytes;
            let mut got: Vec<u64> = cs.iter().map(|c| c.got as u64).collect();
            for (i, c) in cs.iter_mut().enumerate() {
                ep.add(c.fd, i as u64, sys::IN);
            }
            let mut last = Instant::now();
            while live > 0 {
                let n = ep.wait(1000);
                if n == 0 {
                    if last.elapsed().as_secs() > 15 {
                        errors += live as u64;
                        first_error = "stalled".into();
                        break;
                    }
                    continue;
                }
                last = Instant::now();
                for i in 0..n {
                    let tok = ep.evs[i].u64 as usize;
                    let c = &mut cs[tok];
                    if c.fd < 0 {
                        continue;
                    }
                    let r = sys::recv(c.fd, &mut buf);
                    if r < 0 && sys::would_block() {
                        continue;
                    }
                    if r > 0 {
                        got[tok] += r as u64;
                        bytes += r as u64;
                    }
                    if r <= 0 || got[tok] >= want {
                        if got[tok] == want {
                            done += per;
                        } else {
                            errors += 1;
                            first_error = format!("got {} of {want}", got[tok]);
                        }
                        sys::close(c.fd);
                        c.fd = -1;
                        live -= 1;
                    }
                }
            }
        }
    }
    let el = t_start.elapsed().as_secs_f64();
    println!(
        "{{\"kind\":\"ws\",\"mode\":\"{mode}\",\"done\":{done},\"errors\":{errors},\"bytes\":{bytes},\"elapsed_s\":{el:.4},\"per_s\":{:.1},{},\"first_error\":{:?}}}",
        done as f64 / el,
        h.json(),
        first_error
    );
}
