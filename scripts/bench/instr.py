#!/usr/bin/env python3
"""User-space instructions of the proxy per unit of work (valgrind --tool=callgrind, two runs, difference):
repeatable to about 1 % whatever the machine's load.
  instr.py --pbench target/release/pbench --cand ref=/path/nginx --cand new=/path/proxy --workloads http_small,ws_125"""
import argparse, os, re, shutil, signal, subprocess, sys, tempfile, time
import bench


def run(ctx, s, wl, n, work):
    # One process, so that one count is the whole; few connections, so that their table is small.
    text = s.prepare(bench.WL[wl]["conf"]).replace("worker_connections 20000", "worker_connections 4000")
    argv = s.argv(text.replace("master_process on", "master_process off"))
    log = os.path.join(work, "cg.log.%p")
    for f in os.listdir(work):
        if f.startswith("cg."):
            os.unlink(os.path.join(work, f))
    p = subprocess.Popen(["valgrind", "--tool=callgrind", "--trace-children=yes", f"--log-file={log}", f"--callgrind-out-file={work}/cg.out.%p", "--"] + argv,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bench.wait_port(s.ports["KA"], p, 90)
        w = bench.WL[wl]
        base = int(re.search(r"\{(\d+)\}", w["args"]).group(1))
        if w["before"]:
            w["before"](ctx, s)
        r = bench.run_load(ctx, s.ports[w["port"]], w["args"], n / base)
        if r["errors"]:
            raise RuntimeError(f"{r['errors']} errors {r['first_error']}")
    finally:
        p.send_signal(signal.SIGTERM)
        try:
            p.wait(30)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
    time.sleep(0.5)
    tot = 0
    for f in os.listdir(work):
        if f.startswith("cg.log."):
            m = re.findall(r"Collected : (\d+)", open(os.path.join(work, f)).read())
            tot += int(m[-1]) if m else 0
    return tot, w["units"](r)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--pbench", required=True)
    ap.add_argument("--cand", action="append", default=[])
    ap.add_argument("--conf")
    ap.add_argument("--workloads", default="http_small,http_browser,ws_125")
    a = ap.parse_args()
    class Ctx: pass
    ctx = Ctx()
    ctx.pbench = os.path.abspath(a.pbench); ctx.workers = 1; ctx.conf = a.conf; ctx.timeout = 300; ctx.proxy_cpus = ctx.load_cpus = None
    work = tempfile.mkdtemp(prefix="pinstr.")
    os.chmod(work, 0o755)
    bench.make_certs(os.path.join(work, "certs"))
    bench.make_files(os.path.join(work, "html/static"))
    b = bench.start_backend(ctx, work)
    try:
        bench.wait_port(ctx.backend_port, b)
        for c in a.cand:
            n, _, cmd = c.partition("=")
            s = bench.Server(n, cmd, work, ctx)
            for wl in a.workloads.split(","):
                try:
                    x = run(ctx, s, wl, 1000, work)
                    y = run(ctx, s, wl, 9000, work)
                    print(f"{n:12} {wl:14} {(y[0] - x[0]) / (y[1] - x[1]):9.0f} user instructions per {bench.WL[wl]['unit']}", flush=True)
                except Exception as e:
                    print(f"{n:12} {wl:14} failed: {e}", flush=True)
    finally:
        b.terminate()
        b.wait()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
