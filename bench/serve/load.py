#!/usr/bin/env python3
"""Open-loop load on any OpenAI-compatible server, with the result fields of `vllm bench serve`. Standard library only.

    bench/serve/load.py --url http://127.0.0.1:8080 --rate 2 --requests 100 --ttft-ms 1000 --itl-ms 30 --out result.json

Arrivals have gamma gaps (--burstiness 1: Poisson) that are rescaled so that the last one lands at requests/rate, as vllm's do:
they never wait for answers. Lengths are log-normal, like ShareGPT's: prompts of median 110 words, outputs of median 130
tokens. Beside what vllm reports: attainment over ALL offered requests (a refused or failed one is a miss), goodput over
the time of the run, and the machine's own jitter while idle.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
import urllib.parse

WORDS = ("time year people way day man thing woman life child world school state family student group country problem hand part place case week "
         "company system program question work government number night point home water room mother area money story fact month lot right study "
         "book eye job word business issue side kind head house service friend father power hour game line end member law car city community name").split()


def percentile(values, q):
    """numpy.percentile's linear interpolation."""
    if not values:
        return 0.0
    ordered = sorted(values)
    at = (len(ordered) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def arrivals(rng, requests, rate, burstiness):
    gaps = [rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(requests)]
    times, now = [], 0.0
    for gap in gaps:
        now += gap
        times.append(now)
    scale = (requests / rate) / times[-1]
    return [t * scale for t in times]


def length(rng, median, sigma, low, high):
    return max(low, min(high, round(rng.lognormvariate(math.log(median), sigma))))


def random_words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def make_requests(rng, options):
    out = []
    for i in range(options.requests):
        words = length(rng, options.prompt_median, options.prompt_sigma, 4, options.prompt_max)
        # The number in front keeps prompts apart: nothing is to be found in a prefix cache.
        prompt = f"{i} {rng.randrange(10**6)} " + random_words(rng, words)
        out.append((prompt, length(rng, options.output_median, options.output_sigma, 4, options.output_max)))
    return out


async def events(reader):
    """The data of Server-Sent Events in a chunked or plain body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split()[1])
    chunked = "transfer-encoding: chunked" in head.lower()
    if status != 200:
        raise RuntimeError(f"HTTP {status}")
    buffer = b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0], 16)
            piece = await reader.readexactly(size)
            await reader.readexactly(2)
        else:
            piece = await reader.read(65536)
        if not piece:
            return
        buffer += piece
        while b"\n\n" in buffer:
            event, buffer = buffer.split(b"\n\n", 1)
            for line in event.splitlines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    yield json.loads(line[6:])


async def one(options, host, port, prompt, max_tokens):
    """(time to first token, gaps, tokens out, prompt tokens, error); seconds of a monotonic clock."""
    body = {"model": options.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    data = json.dumps({k: v for k, v in body.items() if v is not None}).encode()
    start = time.perf_counter()
    first, last, gaps, usage = None, None, [], {}
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        writer.write((f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
                      f"Content-Length: {len(data)}\r\n\r\n").encode() + data)
        await writer.drain()
        async for event in events(reader):
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            usage = event.get("usage") or usage
            if not event.get("choices") or not (event["choices"][0].get("text") or event["choices"][0].get("finish_reason") is None):
                continue
            now = time.perf_counter()
            if first is None:
                first = now
            else:
                gaps.append(now - last)
            last = now
        if first is None:
            raise RuntimeError("no token came")
        return {"start": start, "ttft": first - start, "itls": gaps, "latency": last - start, "output": usage.get("completion_tokens", len(gaps) + 1),
                "input": usage.get("prompt_tokens", 0), "error": ""}
    except (OSError, RuntimeError, asyncio.IncompleteReadError, ValueError) as error:
        return {"start": start, "ttft": 0.0, "itls": gaps, "latency": 0.0, "output": 0, "input": 0, "error": f"{type(error).__name__}: {error}"}
    finally:
        if writer is not None:
            writer.close()


def idle_jitter(seconds):
    """How late a sleep of 1 ms ends, p99 in ms: what the machine does to any latency, whoever serves."""
    late, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        time.sleep(0.001)
        late.append((time.perf_counter() - begin - 0.001) * 1e3)
    return percentile(late, 99)


async def run(options):
    rng = random.Random(options.seed)
    requests = make_requests(rng, options)
    times = arrivals(rng, options.requests, options.rate, options.burstiness)
    url = urllib.parse.urlsplit(options.url)
    host, port = url.hostname, url.port or 80
    begin = time.perf_counter()
    tasks = []
    for (prompt, tokens), at in zip(requests, times):
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(options, host, port, prompt, tokens)))
    results = await asyncio.gather(*tasks)
    return results, time.perf_counter() - begin


def report(options, results, duration, jitter):
    done = [r for r in results if not r["error"]]
    itls = [gap for r in done for gap in r["itls"]]
    tpots = [(r["latency"] - r["ttft"]) / (r["output"] - 1) for r in done if r["output"] > 1]

    def good(r):
        if r["error"] or (options.ttft_ms and r["ttft"] * 1e3 > options.ttft_ms):
            return False
        tpot = (r["latency"] - r["ttft"]) / (r["output"] - 1) if r["output"] > 1 else 0.0
        return not options.itl_ms or tpot * 1e3 <= options.itl_ms

    attained = sum(map(good, results))
    out = {"request_rate": options.rate, "burstiness": options.burstiness, "num_prompts": options.requests, "duration": duration, "completed": len(done),
           "failed": len(results) - len(done), "total_input_tokens": sum(r["input"] for r in done), "total_output_tokens": sum(r["output"] for r in done),
           "request_throughput": len(done) / duration, "request_goodput": attained / duration,
           "output_throughput": sum(r["output"] for r in done) / duration,
           "total_token_throughput": sum(r["output"] + r["input"] for r in done) / duration,
           "slo_ttft_ms": options.ttft_ms, "slo_tpot_ms": options.itl_ms, "attainment_of_offered": attained / len(results), "idle_jitter_p99_ms": jitter,
           "share_of_itls_within_objective": (sum(g * 1e3 <= options.itl_ms for g in itls) / len(itls)) if itls and options.itl_ms else None}
    for name, values in (("ttft", [r["ttft"] for r in done]), ("tpot", tpots), ("itl", itls), ("e2el", [r["latency"] for r in done])):
        ms = [v * 1e3 for v in values]
        out[f"mean_{name}_ms"] = statistics.fmean(ms) if ms else 0.0
        out[f"median_{name}_ms"] = out[f"p50_{name}_ms"] = percentile(ms, 50)
        out[f"std_{name}_ms"] = statistics.pstdev(ms) if ms else 0.0
        for q in (90, 95, 99):
            out[f"p{q}_{name}_ms"] = percentile(ms, q)
    if options.details:
        out.update(input_lens=[r["input"] for r in results], output_lens=[r["output"] for r in results], ttfts=[r["ttft"] for r in results],
                   itls=[r["itls"] for r in results], latencies=[r["latency"] for r in results], start_times=[r["start"] for r in results])
    out["errors"] = sorted({r["error"] for r in results if r["error"]})
    return out


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="name in the API; default: none is sent")
    parser.add_argument("--rate", type=float, required=True, help="requests per second that are offered")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--burstiness", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt-median", type=float, default=110)
    parser.add_argument("--prompt-sigma", type=float, default=1.1)
    parser.add_argument("--prompt-max", type=int, default=1500)
    parser.add_argument("--output-median", type=float, default=130)
    parser.add_argument("--output-sigma", type=float, default=0.8)
    parser.add_argument("--output-max", type=int, default=512)
    parser.add_argument("--ttft-ms", type=float, default=0, help="objective; 0: none")
    parser.add_argument("--itl-ms", type=float, default=0, help="objective of a request's mean time per output token; 0: none")
    parser.add_argument("--jitter-seconds", type=float, default=2.0)
    parser.add_argument("--details", action="store_true", help="every request's numbers in the result")
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or options.requests < 1 or options.burstiness <= 0:
        parser.error("--rate, --requests and --burstiness must be positive")
    return options


def main():
    options = parse(sys.argv[1:])
    jitter = idle_jitter(options.jitter_seconds)
    results, duration = asyncio.run(run(options))
    out = report(options, results, duration, jitter)
    text = json.dumps(out, indent=1)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text + "\n")
    if not options.out:
        print(text)
    else:
        print(f"rate {options.rate:g}: {out['completed']}/{options.requests} done, attainment {100 * out['attainment_of_offered']:.1f} %, goodput "
              f"{out['request_goodput']:.2f}/s, TTFT p50/p90/p99 {out['p50_ttft_ms']:.0f}/{out['p90_ttft_ms']:.0f}/{out['p99_ttft_ms']:.0f} ms, TPOT "
              f"{out['p50_tpot_ms']:.1f}/{out['p90_tpot_ms']:.1f}/{out['p99_tpot_ms']:.1f} ms, ITL {out['p50_itl_ms']:.1f}/{out['p90_itl_ms']:.1f}/"
              f"{out['p99_itl_ms']:.1f} ms, {out['output_throughput']:.0f} tokens/s")
    return 0 if out["completed"] else 1


if __name__ == "__main__":
    sys.exit(main())
