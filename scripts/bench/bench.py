#!/usr/bin/env python3
"""A/B benchmark of reverse proxies on loopback.  Primary metric: CPU time of the proxy's process
tree per unit of work (request, message, handshake, MiB), in interleaved rounds, medians.
See README.md."""
import argparse, json, os, random, re, resource, shlex, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
PORTS = ["KA", "LOG", "CLOSE", "TLSEC", "TLSRSA", "REGEX", "HOSTS", "H2"]
TICK = os.sysconf("SC_CLK_TCK")


def log(*a):
    print(*a, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- /proc
def children_map():
    m = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                s = open(f"/proc/{d}/stat").read()
                m.setdefault(int(s.rsplit(")", 1)[1].split()[1]), []).append(int(d))
            except OSError:
                pass
    return m


def tree(pid):
    m, out, st = children_map(), [], [pid]
    while st:
        p = st.pop()
        if os.path.exists(f"/proc/{p}/stat"):
            out.append(p)
        st += m.get(p, [])
    return out


def starttime(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


class Cpu:
    """CPU time of a process tree.  ns-accurate from schedstat when no task went away, else ticks."""

    def __init__(self, pid):
        self.tasks, self.ticks, self.ut, self.st = {}, 0, 0, 0
        for p in tree(pid):
            try:
                f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
                self.ut += int(f[11]); self.st += int(f[12])
                self.ticks += int(f[11]) + int(f[12]) + int(f[13]) + int(f[14])
                for t in os.listdir(f"/proc/{p}/task"):
                    self.tasks[t] = int(open(f"/proc/{p}/task/{t}/schedstat").read().split()[0])
            except OSError:
                pass

    def since(self, a):
        """seconds between sample a and self; and the user share of it"""
        tick_s = (self.ticks - a.ticks) / TICK
        u = self.ut - a.ut
        s = self.st - a.st
        share = u / (u + s) if u + s else 0.0
        if all(t in self.tasks for t in a.tasks):
            return sum(v - a.tasks.get(t, 0) for t, v in self.tasks.items()) / 1e9, share
        return tick_s, share


def memory(pid):
    """(pss, rss, private_dirty+anon...) in KiB for the tree"""
    pss = rss = anon = 0
    n = 0
    for p in tree(pid):
        try:
            n += 1
            for l in open(f"/proc/{p}/smaps_rollup"):
                k, _, v = l.partition(":")
                if k == "Pss":
                    pss += int(v.split()[0])
                elif k == "Rss":
                    rss += int(v.split()[0])
                elif k == "Anonymous":
                    anon += int(v.split()[0])
        except OSError:
            pass
    return {"pss_kib": pss, "rss_kib": rss, "anon_kib": anon, "procs": n}


# ---------------------------------------------------------------- servers
_used = set()


def free_port():
    while True:
        p = random.randint(12000, 30000)
        if p in _used:
            continue
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", p))
        except OSError:
            continue
        finally:
            s.close()
        _used.add(p)
        return p


def wait_port(p, proc=None, t=15):
    end = time.time() + t
    while time.time() < end:
        if proc is not None and proc.poll() is not None:
            raise RuntimeError(f"server exited with {proc.returncode}")
        try:
            socket.create_connection(("127.0.0.1", p), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"port {p} did not open")


def preexec(cpus):
    def f():
        r = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (r[1], r[1]))
        if cpus:
            os.sched_setaffinity(0, cpus)
        os.setpgid(0, 0)
    return f


# What would be too much to read in a template.
MANY = {
    "MAP": "\n".join(f"        key{n} value{n};" for n in range(10000)),
    "REGEXES": "\n".join(f'        location ~ ^/api/v[0-9]+/thing{n}/([a-z0-9-]+)$ {{ return 200 "$1\\n"; }}' for n in range(50)),
    "NAMES": "\n".join(f'    server {{ listen 127.0.0.1:@HOSTS@; server_name host{n}.bench.test; location / {{ return 200 "{n}\\n"; }} }}'
                       for n in range(1000)),
}


def json_text(size):
    """JSON as an API answers it, always the same."""
    rnd = random.Random(1)
    rows = []
    while sum(map(len, rows)) < size:
        rows.append(json.dumps(dict(id=rnd.getrandbits(32), name=rnd.choice("alpha beta gamma delta".split()), price=rnd.random(), tags=rnd.sample(range(99), 5))) + ",\n")
    return "".join(rows)[:size].encode()


def start_backend(ctx, work, threads=1):
    """The upstream of all rows, without and with TLS."""
    ctx.backend_port, ctx.tls_backend_port = free_port(), free_port()
    certs = os.path.join(work, "certs")
    return subprocess.Popen([ctx.pbench, "backend", "--listen", f"127.0.0.1:{ctx.backend_port}", "--tls-listen", f"127.0.0.1:{ctx.tls_backend_port}",
                             "--cert", f"{certs}/ec.pem", "--key", f"{certs}/ec.key", "--threads", str(threads)],
                            stderr=subprocess.DEVNULL, preexec_fn=preexec(ctx.load_cpus))


class Server:
    def __init__(self, name, cmd, work, ctx):
        self.name, self.cmd, self.ctx = name, cmd, ctx
        self.prefix = os.path.join(work, re.sub(r"\W", "_", name))
        self.proc = None
        self.ports = {}
        self.conf = None

    def subst(self, s):
        d = dict(MANY, **self.ports, BACKEND=self.ctx.backend_port, TLSBACKEND=self.ctx.tls_backend_port, WORKERS=self.ctx.workers, PREFIX=self.prefix)
        for k, v in d.items():
            s = s.replace(f"@{k}@", str(v))
        return s

    def prepare(self, conf="nginx"):
        """Puts the prefix together and gives the text of a configuration that listens on new ports."""
        self.conf = conf
        self.ports = {k: free_port() for k in PORTS}
        for d in ("logs", "tmp"):
            os.makedirs(os.path.join(self.prefix, d), exist_ok=True)
        # The same for all: how a file lies in the page cache is a good part of what sending it costs.
        for d in ("certs", "html"):
            link = os.path.join(self.prefix, d)
            if not os.path.exists(link):
                os.symlink(os.path.join("..", d), link)
        with open(self.ctx.conf or os.path.join(HERE, f"conf/{conf}.conf.tmpl")) as template:
            return self.subst(template.read())

    def argv(self, text):
        conf = os.path.join(self.prefix, "nginx.conf")
        with open(conf, "w") as out:
            out.write(text)
        return [self.cmd, "-p", self.prefix + "/", "-c", conf]

    def start(self, conf="nginx"):
        argv = self.argv(self.prepare(conf))
        self.err = open(os.path.join(self.prefix, "stderr.log"), "ab")
        self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.err, stderr=self.err,
                                     cwd=self.prefix, preexec_fn=preexec(self.ctx.proxy_cpus))
        wait_port(self.ports["KA"], self.proc)
        time.sleep(0.2)
        return self

    def serve(self, conf):
        """Goes on with that configuration, or with the one that --conf gave."""
        if self.conf != conf and not self.ctx.conf:
            self.stop()
            self.start(conf)

    def stop(self):
        if not self.proc:
            return
        pids = [(p, starttime(p)) for p in tree(self.proc.pid)]
        try:
            self.proc.send_signal(signal.SIGTERM)
            self.proc.wait(5)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        for p, t in pids:  # what is left of this server's own tree, and nothing else
            try:
                if t and starttime(p) == t:
                    os.kill(p, signal.SIGKILL)
            except OSError:
                pass
        self.proc = None
        self.err.close()


# ---------------------------------------------------------------- workloads
# name: (port, pbench arguments, unit, function(result)->units)
def W(port, args, unit="req", units=lambda r: r["done"], conf="nginx", before=None):
    return dict(port=port, args=args, unit=unit, units=units, conf=conf, before=before)


MIB = lambda r: r["bytes"] / (1 << 20)
IDLE = 1000


def hold_open(ctx, s):
    """Has the server keep many connections to its upstream, by as many requests that are answered at the same time."""
    r = run_load(ctx, s.ports["KA"], f"http --path /idle/hold/{IDLE} --conns {IDLE} --requests {IDLE}", 1)
    descriptors = sum(len(os.listdir(f"/proc/{p}/fd")) for p in tree(s.proc.pid))
    if r["errors"] or descriptors < IDLE:
        raise RuntimeError(f"{descriptors} descriptors, {r['errors']} errors: {r['first_error']}")
WL = {
    "http_small": W("KA", "http --path /s --conns 64 --requests {60000} --expect-body 200"),
    "http_small_log": W("LOG", "http --path /s --conns 64 --requests {60000} --expect-body 200"),
    "http_browser": W("KA", "http --path /s --conns 64 --requests {50000} --headers browser --expect-body 200"),
    "http_64k": W("KA", "http --path /b/65536 --conns 32 --requests {8000} --expect-body 65536", "MiB", MIB),
    "http_1m": W("KA", "http --path /b/1048576 --conns 16 --requests {800} --expect-body 1048576", "MiB", MIB),
    "http_chunked_64k": W("KA", "http --path /c/65536 --conns 32 --requests {8000}", "MiB", MIB),
    "http_upclose": W("CLOSE", "http --path /s --conns 64 --requests {20000} --expect-body 200"),
    "http_newconn": W("KA", "http --path /s --conns 64 --requests {20000} --close --expect-body 200"),
    "http_lowload": W("KA", "http --path /s --conns 1 --requests {15000} --expect-body 200"),
    "cache_small": W("KA", "http --path /cached/s --conns 64 --requests {60000} --expect-body 200"),
    "cache_64k": W("KA", "http --path /cached/b/65536 --conns 32 --requests {8000} --expect-body 65536", "MiB", MIB),
    "upload_10m": W("KA", "http --path /s --body 10485760 --conns 8 --requests {60} --expect-body 200", "MiB", lambda r: r["uploaded"] / (1 << 20)),
    "http_small_idle": W("KA", "http --path /idle/s --conns 64 --requests {60000} --expect-body 200", before=hold_open),
    "http_small_uptls": W("KA", "http --path /tls/s --conns 64 --requests {40000} --expect-body 200"),
    "h2_small": W("H2", "h2load --path /s --conns 8 --streams 100 --requests {60000} --expect-body 200"),
    "ws_125": W("KA", "ws --conns 200 --size 125 --messages {100000}", "msg"),
    "ws_16k": W("KA", "ws --conns 200 --size 16384 --messages {30000}", "msg"),
    "ws_up_125": W("KA", "ws --mode up --conns 20 --size 125 --messages {2000000}", "MiB", MIB),
    "ws_down_125": W("KA", "ws --mode down --conns 20 --size 125 --messages {2000000}", "MiB", MIB),
    "tls_full_ec": W("TLSEC", "tls --mode full --conns 8 --count {2500}", "handshake"),
    "tls_full_rsa": W("TLSRSA", "tls --mode full --conns 8 --count {1200}", "handshake"),
    "tls_resume_ec": W("TLSEC", "tls --mode resume --conns 8 --count {3000}", "handshake"),
    "tls12_full_ec": W("TLSEC", "tls --mode full --tls 1.2 --conns 8 --count {2500}", "handshake"),
    "tls_small_ka": W("TLSEC", "tls --mode bulk --conns 16 --count {20000} --path /s"),
    "tls_bulk_1m": W("TLSEC", "tls --mode bulk --conns 8 --count {400} --path /b/1048576", "MiB", MIB),
    "tls_bulk_1m_aes128": W("TLSEC", "tls --mode bulk --suite aes128 --conns 8 --count {400} --path /b/1048576", "MiB", MIB),
    "static_1k": W("KA", "http --path /static/1k --conns 64 --requests {60000} --expect-body 1024"),
    "static_1m": W("KA", "http --path /static/1m --conns 16 --requests {1500} --expect-body 1048576", "MiB", MIB),
    "static_1k_log": W("LOG", "http --path /static/1k --conns 64 --requests {60000} --expect-body 1024"),
    "return": W("KA", "http --path /return --conns 64 --requests {100000} --expect-body 28"),
    "return_log": W("LOG", "http --path /return --conns 64 --requests {100000} --expect-body 28"),
    "gzip_64k": W("KA", "http --path /gzip/64k.json --conns 16 --requests {3000} --headers gzip"),
    "regex_50": W("REGEX", "http --path /api/v1/thing49/a-1 --conns 64 --requests {60000} --expect-body 4", conf="many"),
    "names_1000": W("HOSTS", "http --path / --host host777.bench.test --conns 64 --requests {100000} --expect-body 4", conf="many"),
    "map_10000": W("KA", "http --path /?key=key7777 --conns 64 --requests {100000} --expect-body 9", conf="many"),
}
DEFAULT = ("http_small,http_small_log,http_64k,http_1m,http_upclose,http_small_idle,http_small_uptls,upload_10m,cache_small,cache_64k,"
           "h2_small,ws_125,ws_16k,static_1k,static_1m,gzip_64k,regex_50,tls_full_ec,idle,idle_tls,reload")


def run_load(ctx, port, args, scale):
    args = re.sub(r"\{(\d+)\}", lambda m: str(max(1, int(int(m.group(1)) * scale))), args)
    if args.startswith("h2load "):
        return run_h2load(ctx, port, args.split()[1:])
    argv = [ctx.pbench] + args.split() + ["--addr", f"127.0.0.1:{port}"]
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=ctx.timeout, preexec_fn=preexec(ctx.load_cpus))
    out = p.stdout.decode().strip().splitlines()
    if not out:
        raise RuntimeError(f"load generator gave nothing: {p.stderr.decode()[:300]}")
    r = json.loads(out[-1])
    if p.stderr:
        r["stderr"] = p.stderr.decode()[:200]
    return r


def run_h2load(ctx, port, args):
    """The load generator of nghttp2, its result as pbench would have it."""
    o = dict(zip(args[::2], args[1::2]))
    with tempfile.NamedTemporaryFile("r") as times:
        argv = ["h2load", "-n", o["--requests"], "-c", o["--conns"], "-m", o["--streams"], "--log-file", times.name,
                f"http://127.0.0.1:{port}{o['--path']}"]
        try:
            p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=ctx.timeout,
                               preexec_fn=preexec(ctx.load_cpus))
        except FileNotFoundError:
            raise RuntimeError("h2load is missing (Debian: nghttp2-client)")
        us = sorted(int(line.split()[2]) for line in times)
    number = lambda pattern: float((re.search(pattern, p.stdout) or re.match("(0)", "0")).group(1))
    done = int(number(r"status codes: (\d+) 2xx"))
    # Of whole answers, each as long as it has to be.
    right = done * int(o["--expect-body"]) == number(r"\((\d+)\) data")
    quantile = lambda share: us[int((len(us) - 1) * share)] if us else 0
    return dict(done=done, errors=int(o["--requests"]) - done + (not right), per_s=number(r"([\d.]+) req/s"),
                first_error="" if right else p.stdout[-300:], p50_us=quantile(.5), p99_us=quantile(.99), p999_us=quantile(.999))


def measure(ctx, s, w, scale):
    if s.proc is None or s.proc.poll() is not None:
        raise RuntimeError("the server is not running")
    a = Cpu(s.proc.pid)
    t0 = time.time()
    r = run_load(ctx, s.ports[w["port"]], w["args"], scale)
    el = time.time() - t0
    cpu, ushare = Cpu(s.proc.pid).since(a)
    units = w["units"](r)
    return dict(server=s.name, cpu_s=cpu, user_share=ushare, units=units, cpu_us=cpu * 1e6 / units if units else None,
                per_s=r["per_s"], util=cpu / el, errors=r["errors"], p50=r["p50_us"], p99=r["p99_us"], p999=r["p999_us"],
                first_error=r.get("first_error") or r.get("stderr", ""))


def idle(ctx, s, n, tls=False):
    """user memory per idle tunnel on a fresh server"""
    s.stop()
    s.start()
    # warm up: 50 tunnels opened and closed
    subprocess.run([ctx.pbench, "ws", "--addr", f"127.0.0.1:{s.ports['KA']}", "--conns", "50", "--messages", "500"],
                   stdout=subprocess.DEVNULL, preexec_fn=preexec(ctx.load_cpus))
    time.sleep(0.5)
    m0 = memory(s.proc.pid)
    p = subprocess.Popen([ctx.pbench, "idle", "--addr", f"127.0.0.1:{s.ports['TLSEC' if tls else 'KA']}", "--tls", "1" if tls else "0", "--conns", str(n), "--src", "127.0.0.1,127.0.0.2,127.0.0.3"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=preexec(ctx.load_cpus))
    l = p.stdout.readline().decode().split()
    time.sleep(ctx.idle_settle)
    m1 = memory(s.proc.pid)
    c0 = Cpu(s.proc.pid)
    time.sleep(2)
    idle_cpu, _ = Cpu(s.proc.pid).since(c0)
    p.stdin.write(b"\n"); p.stdin.flush()
    r = json.loads(p.stdout.read().decode().strip().splitlines()[-1])
    p.wait()
    time.sleep(1)
    m2 = memory(s.proc.pid)
    k = max(1, int(l[1]))
    s.stop()
    s.start()
    return dict(server=s.name, tunnels=k, pss_per=(m1["pss_kib"] - m0["pss_kib"]) / k, rss_per=(m1["rss_kib"] - m0["rss_kib"]) / k,
                base_pss=m0["pss_kib"], total_pss=m1["pss_kib"], after_pss=m2["pss_kib"], idle_cpu_ms_per_s=idle_cpu * 500,
                errors=r["errors"], broken=r["broken"], first_error=r["first_error"])


def reload_test(ctx, s, n_ws=500, hups=20, every=0.5):
    """SIGHUP under load.  n_ws WebSockets in all, n_ws/hups of them opened before each HUP, so that
    every configuration generation has some; keepalive and new-connection HTTP load meanwhile."""
    s.stop()
    s.start()
    port = s.ports["KA"]
    end = time.time() + hups * every + 5
    rest = lambda less=0: max(1, round(end - time.time() - less))
    mk = lambda a: subprocess.Popen([ctx.pbench] + a.split() + ["--addr", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, preexec_fn=preexec(ctx.load_cpus))
    m0 = memory(s.proc.pid)
    ka = mk(f"http --path /s --conns 16 --duration {rest(1)}")
    nc = mk(f"http --path /s --conns 8 --close --duration {rest(1)}")
    time.sleep(0.5)
    m_load = memory(s.proc.pid)
    c0 = Cpu(s.proc.pid)
    ws = []
    for _ in range(hups):
        ws.append(mk(f"ws --conns {n_ws // hups} --size 125 --messages {n_ws // hups} --pace-ms 500 --duration {rest()}"))
        time.sleep(every / 2)
        os.kill(s.proc.pid, signal.SIGHUP)
        time.sleep(every / 2)
    time.sleep(0.5)
    m1 = memory(s.proc.pid)
    agg = {}

    def add(k, p):
        o, _ = p.communicate(timeout=120)
        v = json.loads(o.decode().strip().splitlines()[-1])
        d = agg.setdefault(k, dict(done=0, errors=0, reconnects=0, p99=0, p999=0, first_error=""))
        d["done"] += v["done"]; d["errors"] += v["errors"]; d["reconnects"] += v.get("reconnects") or 0
        d["p99"] = max(d["p99"], v["p99_us"]); d["p999"] = max(d["p999"], v["p999_us"])
        d["first_error"] = d["first_error"] or v["first_error"]
    add("keepalive", ka); add("newconn", nc)
    for p in ws:
        add("ws", p)
    time.sleep(2)
    m2 = memory(s.proc.pid)
    res = dict(server=s.name, hups=hups, websockets=n_ws, before=m0, loaded=m_load, after_hups=m1, drained=m2, **agg)
    s.stop()
    s.start()
    return res


def ratio_ci(c, r, n=2000):
    if not r:
        return (float("nan"),) * 3
    md = statistics.median
    rnd = random.Random(1)
    b = sorted(md(rnd.choices(c, k=len(c))) / md(rnd.choices(r, k=len(r))) for _ in range(n))
    return md(c) / md(r), b[int(n * 0.05)], b[int(n * 0.95)]


def make_files(d):
    os.makedirs(d, exist_ok=True)
    for n, sz in (("1k", 1024), ("1m", 1 << 20)):
        with open(os.path.join(d, n), "wb") as f:
            f.write((b"abcdefghijklmnopqrstuvwxyz012345\n" * (sz // 33 + 1))[:sz])
    with open(os.path.join(d, "64k.json"), "wb") as f:
        f.write(json_text(65536))


def make_certs(d):
    os.makedirs(d, exist_ok=True)
    for n, alg in (("ec", ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]), ("rsa", ["rsa:2048"])):
        if not os.path.exists(f"{d}/{n}.pem"):
            subprocess.run(["openssl", "req", "-x509", "-newkey", *alg, "-nodes", "-days", "3650", "-subj", "/CN=bench.test", "-addext",
                            "subjectAltName=DNS:bench.test", "-keyout", f"{d}/{n}.key", "-out", f"{d}/{n}.pem"], check=True, stderr=subprocess.DEVNULL)
            open(f"{d}/{n}.both.pem", "w").write(open(f"{d}/{n}.pem").read() + open(f"{d}/{n}.key").read())
    for f in os.listdir(d):
        os.chmod(os.path.join(d, f), 0o644)


ROWS = {
    "http_small": "small response, keep-alive both sides", "http_small_log": "the same with a log line",
    "http_browser": "small response, a browser's headers", "http_lowload": "small response, one connection",
    "http_64k": "64 KiB response", "http_1m": "1 MiB response", "http_chunked_64k": "64 KiB response, chunked",
    "http_upclose": "new upstream connection per request", "http_newconn": "new client connection per request",
    "cache_small": "small response from the cache", "cache_64k": "64 KiB response from the cache",
    "upload_10m": "10 MiB request body", "http_small_idle": f"small response, {IDLE:,} idle upstream connections",
    "http_small_uptls": "small response, TLS to the upstream", "h2_small": "small response, HTTP/2 with 100 streams a connection",
    "ws_125": "WebSocket 125 B echo, 200 tunnels", "ws_16k": "WebSocket 16 KiB echo",
    "ws_up_125": "WebSocket flood to the backend", "ws_down_125": "WebSocket flood to the client",
    "tls_full_ec": "full TLS handshake, ECDSA P-256", "tls_full_rsa": "full TLS handshake, RSA-2048",
    "tls_resume_ec": "resumed TLS handshake", "tls12_full_ec": "full TLS 1.2 handshake, ECDSA P-256",
    "static_1k": "1 KiB file", "static_1m": "1 MiB file", "static_1k_log": "1 KiB file with a log line",
    "return": "return of a text", "return_log": "return of a text with a log line", "gzip_64k": "64 KiB of JSON, compressed",
    "regex_50": "the last of 50 regex locations", "names_1000": "one of 1,000 server names", "map_10000": "a map of 10,000 entries",
    "idle": "memory per idle ws tunnel", "idle_tls": "memory per idle wss tunnel",
}


def table(summary, ref, names):
    """The medians side by side, as Markdown: below 1 is cheaper than the reference."""
    print("\n| work | unit | " + " | ".join(names) + " | " + " | ".join(f"{n} / {ref}" for n in names if n != ref) + " |")
    print("| --- " * (2 * len(names) + 1) + "|")
    for wl, row in summary.items():
        if wl == "reload":
            continue
        memory_row = wl.startswith("idle")
        unit = next(iter(row.values()))["unit"]
        cell = lambda n: f"{row[n]['pss_kib' if memory_row else 'cpu_us']:.2f}" if n in row else "-"
        ratios = [f"{row[n]['ratio']:.2f}" if n in row else "-" for n in names if n != ref]
        print(f"| {ROWS.get(wl, wl)} | {unit if memory_row else 'CPU us/' + unit} | "
              + " | ".join([cell(n) for n in names] + ratios) + " |")
    for n, r in summary.get("reload", {}).items():
        print(f"\n{n}, 20 reloads under load with 25 more tunnels before each: processes {r['procs_before']} -> "
              f"{r['procs_after']}, PSS {r['pss_before_mib']} -> {r['pss_after_mib']} MiB, {r['lost']} requests or tunnels lost")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--pbench", required=True, help="load generator binary")
    ap.add_argument("--ref", help="reference nginx-compatible binary (run as BIN -p PREFIX -c CONF)")
    ap.add_argument("--cand", action="append", default=[], metavar="NAME=BIN", help="nginx-compatible candidate")
    ap.add_argument("--conf", help="other nginx.conf template (same @...@ names)")
    ap.add_argument("--workloads", default=DEFAULT, help="comma list, 'default', 'all', plus 'idle', 'idle_tls' and 'reload'")
    ap.add_argument("--skip", action="append", default=[], metavar="NAME:WL,WL", help="leave out workloads for a server")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--scale", type=float, default=1.0)
    ap.add_argument("--workers", type=int, default=1)
    ap.add_argument("--pin", default="auto", choices=["auto", "split", "same", "none"])
    ap.add_argument("--idle-conns", type=int, default=9900)
    ap.add_argument("--idle-settle", type=float, default=3)
    ap.add_argument("--timeout", type=float, default=120)
    ap.add_argument("--backend-threads", type=int, default=1)
    ap.add_argument("--out", help="append JSON lines here")
    ap.add_argument("--summary", help="write the medians and ratios here as JSON")
    ap.add_argument("--work", help="work directory (default: a temporary one)")
    ap.add_argument("--keep", action="store_true")
    a = ap.parse_args()

    class Ctx: pass
    ctx = Ctx()
    ctx.pbench = os.path.abspath(a.pbench); ctx.workers = a.workers; ctx.conf = a.conf; ctx.timeout = a.timeout; ctx.idle_settle = a.idle_settle
    cpus = sorted(os.sched_getaffinity(0))
    pin = a.pin if a.pin != "auto" else ("split" if a.workers == 1 and len(cpus) > 1 else "none")
    ctx.proxy_cpus = {"split": {cpus[0]}, "same": {cpus[0]}, "none": None}[pin]
    ctx.load_cpus = {"split": set(cpus[1:]), "same": {cpus[0]}, "none": None}[pin]
    work = a.work or tempfile.mkdtemp(prefix="pbench.")
    os.makedirs(work, exist_ok=True)
    os.chmod(work, 0o755)
    make_certs(os.path.join(work, "certs"))
    make_files(os.path.join(work, "html/static"))
    back = start_backend(ctx, work, a.backend_threads)
    servers = []
    out = open(a.out, "a") if a.out else None
    skip = {}
    for s in a.skip:
        k, _, v = s.partition(":")
        skip.setdefault(k, set()).update(v.split(","))
    wls = DEFAULT.split(",") if a.workloads == "default" else (list(WL) + ["idle", "idle_tls", "reload"]) if a.workloads == "all" else a.workloads.split(",")
    failed = False
    try:
        wait_port(ctx.backend_port, back)
        if a.ref:
            servers.append(Server("nginx", a.ref, work, ctx))
        for c in a.cand:
            n, _, b = c.partition("=")
            servers.append(Server(n, os.path.abspath(b), work, ctx))
        for s in list(servers):
            try:
                s.start()
            except Exception as e:
                failed = True
                log(f"{s.name}: does not start: {e}")
                try:
                    log(open(os.path.join(s.prefix, "stderr.log")).read()[-500:])
                except OSError:
                    pass
                s.stop()
                servers.remove(s)
        if not servers:
            raise SystemExit("no server started")
        ref = "nginx" if a.ref else servers[0].name
        summary = {}
        for wl in wls:
            live = [s for s in servers if wl not in skip.get(s.name, ())]
            if wl in ("idle", "idle_tls"):
                print(f"\n## {wl}: idle WebSocket tunnels ({a.idle_conns}): proxy user memory per tunnel")
                print(f"{'server':14} {'PSS KiB':>8} {'RSS KiB':>8} {'base MiB':>9} {'total MiB':>9} {'after MiB':>9} {'cpu ms/s':>9} {'err':>4} {'ratio':>6}")
                base = None
                for s in live:
                    try:
                        r = idle(ctx, s, a.idle_conns, wl == "idle_tls")
                    except Exception as e:
                        log(f"{s.name} {wl}: {e}"); failed = True
                        continue
                    base = base or r["pss_per"]
                    summary.setdefault(wl, {})[s.name] = dict(pss_kib=round(r["pss_per"], 2), ratio=round(r["pss_per"] / base, 3), unit="KiB/tunnel", errors=r["errors"] + r["broken"])
                    print(f"{s.name:14} {r['pss_per']:8.2f} {r['rss_per']:8.2f} {r['base_pss']/1024:9.1f} {r['total_pss']/1024:9.1f} {r['after_pss']/1024:9.1f} {r['idle_cpu_ms_per_s']:9.2f} {r['errors']+r['broken']:4} {r['pss_per']/base:6.2f}  {r['first_error']}", flush=True)
                    if out:
                        out.write(json.dumps(dict(workload=wl, workers=a.workers, **r)) + "\n"); out.flush()
                continue
            if wl == "reload":
                print("\n## reload: 20 SIGHUPs under load, 25 more open WebSockets before each")
                for s in live:
                    r = reload_test(ctx, s)
                    lost = sum(r[k]["errors"] for k in ("ws", "keepalive", "newconn"))
                    summary.setdefault(wl, {})[s.name] = dict(
                        procs_before=r["before"]["procs"], procs_after=r["after_hups"]["procs"], lost=lost,
                        pss_before_mib=round(r["loaded"]["pss_kib"] / 1024, 1),
                        pss_after_mib=round(r["after_hups"]["pss_kib"] / 1024, 1))
                    f = lambda m: f"{m['procs']} procs {m['pss_kib']/1024:.1f} MiB PSS"
                    print(f"{s.name:14} before: {f(r['before'])}; under load: {f(r['loaded'])}; after {r['hups']} HUPs: {f(r['after_hups'])}; drained: {f(r['drained'])}")
                    for k in ("ws", "keepalive", "newconn"):
                        print(f"{'':14} {k:10} done {r[k]['done']} failed {r[k]['errors']} reconnects {r[k]['reconnects']} p99 {r[k]['p99']:.0f} us p99.9 {r[k]['p999']:.0f} us {r[k]['first_error']}", flush=True)
                    if out:
                        out.write(json.dumps(dict(workload="reload", workers=a.workers, **r)) + "\n"); out.flush()
                continue
            w = WL[wl]
            res = {s.name: [] for s in live}
            for s in list(live):  # warm-up and check
                try:
                    s.serve(w["conf"])
                    if w["before"]:
                        w["before"](ctx, s)
                    r = measure(ctx, s, w, a.scale * 0.1)
                    if r["errors"] or not r["units"]:
                        raise RuntimeError(f"{r['errors']} errors: {r['first_error']}")
                except Exception as e:
                    log(f"{s.name} {wl}: {e}"); failed = True
                    live.remove(s)
            for rnd in range(a.rounds):
                order = live if rnd % 2 == 0 else live[::-1]
                for s in order:
                    try:
                        r = measure(ctx, s, w, a.scale)
                    except Exception as e:
                        log(f"{s.name} {wl}: {e}"); failed = True
                        continue
                    r.update(workload=wl, round=rnd, workers=a.workers, pin=pin, unit=w["unit"])
                    res[s.name].append(r)
                    if out:
                        out.write(json.dumps(r) + "\n"); out.flush()
            print(f"\n## {wl}: CPU us per {w['unit']} (workers={a.workers}, pin={pin}, {a.rounds} rounds, median [min..max], load {os.getloadavg()[0]:.1f})")
            print(f"{'server':14} {'cpu us':>9} {'[min':>9} {'max]':>9} {'ratio':>6} {'[90% interval]':>14} {'usr%':>5} {'units/cpu-s':>11} {'per_s':>9} {'util':>5} {'p50 us':>8} {'p99 us':>8} {'p99.9':>8} {'err':>4}")
            med = lambda n, k: statistics.median(x[k] for x in res[n])
            for s in servers:
                n = s.name
                if not res.get(n):
                    continue
                c = [x["cpu_us"] for x in res[n] if x["cpu_us"]]
                if not c:
                    continue
                # ratio of medians (noise is per run, so pairing neighbours does not help), bootstrap 90 % interval
                rc = [x["cpu_us"] for x in res.get(ref) or [] if x["cpu_us"]]
                ratio, lo, hi = ratio_ci(c, rc)
                nerr = sum(x["errors"] for x in res[n])
                if nerr:
                    failed = True
                summary.setdefault(wl, {})[n] = dict(cpu_us=round(statistics.median(c), 2), ratio=round(ratio, 3), ratio_lo=round(lo, 3), ratio_hi=round(hi, 3), unit=w["unit"], p99_us=med(n, "p99"), errors=nerr)
                print(f"{n:14} {statistics.median(c):9.2f} {min(c):9.2f} {max(c):9.2f} {ratio:6.3f} {f'[{lo:.2f}..{hi:.2f}]':>14} {med(n,'user_share')*100:5.0f} {1e6/statistics.median(c):11.0f} {med(n,'per_s'):9.0f} {med(n,'util'):5.2f} {med(n,'p50'):8.0f} {med(n,'p99'):8.0f} {med(n,'p999'):8.0f} {sum(x['errors'] for x in res[n]):4}", flush=True)
        table(summary, ref, [s.name for s in servers])
        if a.summary:
            json.dump(summary, open(a.summary, "w"), indent=1)
    finally:
        for s in servers:
            s.stop()
        back.terminate()
        back.wait()
        if not a.work and not a.keep:
            shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
