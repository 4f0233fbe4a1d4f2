import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { CpuEvidence } from '../../src/instance/hang/cpu-evidence.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { alive, canListProcesses, descendants, killTree } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';
import { runInstance } from '../process/run-instance.js';
import { watchRun } from './watched-child.js';

const hangTimeoutMs = 2_000;
/** Long enough for a verdict: three looks, of which one waits for slots. */
const longMs = 6_000;
const oneWord = { prompt: 'hi', n_predict: 1 };

/** A child that says it is ready and answers each of these with a piece of JavaScript; `res` is what it answers on. */
function scripted(answers: Record<string, string>) {
  const file = join(tempDir(), 'child.mjs');
  const routes = Object.entries(answers).map(
    ([path, code]) => `${JSON.stringify(path)}: (res) => { ${code} }`,
  );
  writeFileSync(
    file,
    `import { createServer } from 'node:http';
    const routes = { ${routes.join(', ')} };
    createServer((req, res) => {
      req.resume();
      if (routes[req.url]) routes[req.url](res); else res.writeHead(404).end();
    }).listen(Number(process.argv[2]), '127.0.0.1', () =>
      console.log('cmd_child_to_router:state:{"state":"ready","payload":null}'));`,
  );
  return { command: (port: number) => [process.execPath, file, String(port)] };
}

describe.runIf(canListProcesses)('a child that hangs', () => {
  test('is found when it is healthy and answers nothing else', async () => {
    const run = runInstance({ behaviour: { hangs: ['/completion', '/slots'] } });
    const watched = await watchRun(run, { hangTimeoutMs });
    watched.post('/completion', oneWord);
    expect(await watched.hangs()).toMatch(
      /^made no progress for \d s with 1 request in flight \(--hang-timeout 2 s\): it sent nothing but comments, it used 0\.\d\d s of processor time, \/slots was not answered within 1 s$/,
    );
  });

  test('is found when all that it sends is comments', async () => {
    const run = runInstance(
      scripted({
        '/slots': `res.end('[{"n_decoded":5}]')`,
        '/completion': `res.writeHead(200, { 'content-type': 'text/event-stream' });
          setInterval(() => res.write(':\\n\\n'), 100)`,
      }),
    );
    const watched = await watchRun(run, { hangTimeoutMs });
    const exchange = watched.post('/completion', oneWord);
    expect(await watched.hangs()).toContain('/slots did not change');
    expect(exchange.body).toContain(':\n\n:\n\n');
  });

  test('is found when it answers everything with 500, and then a probe, too', async () => {
    const run = runInstance({ behaviour: { errorStatus: 500 } });
    const watched = await watchRun(run, { hangTimeoutMs: 600_000 });
    for (let n = 0; n < 3; n += 1) {
      const exchange = watched.post('/v1/chat/completions', {});
      await eventually('it is answered', () => exchange.ended === 'whole');
    }
    expect(await watched.hangs()).toBe(
      'answered the last 3 requests with a 5xx (500) and answered two one-token completions with 500, too',
    );
  });
});

describe.runIf(canListProcesses)('a child that works is left alone', () => {
  test('while a grandchild in a session of its own computes for it', async () => {
    const busy = `const until = Date.now() + ${longMs};
      const burn = () => { if (Date.now() > until) return res.end('done');
        const stop = performance.now() + 40; while (performance.now() < stop); setTimeout(burn, 40); };`;
    const run = runInstance(
      scripted({
        '/completion': `import('node:child_process').then(({ spawn }) =>
          spawn('setsid', [process.execPath, '-e', ${JSON.stringify(busy.replace("res.end('done')", 'process.exit()') + 'burn()')}])
            .once('exit', () => res.end('done')))`,
      }),
    );
    const watched = await watchRun(run, { hangTimeoutMs });
    const exchange = watched.post('/completion', oneWord);
    await eventually('the answer comes', () => exchange.ended === 'whole', { deadlineMs: 20_000 });
    expect(watched.reasons).toEqual([]);
  });

  test('while its slots tell of tokens', async () => {
    const run = runInstance(
      scripted({
        '/slots': `res.end(String(performance.now()))`,
        '/completion': `setTimeout(() => res.end('done'), ${longMs})`,
      }),
    );
    const watched = await watchRun(run, { hangTimeoutMs });
    const exchange = watched.post('/completion', oneWord);
    await eventually('the answer comes', () => exchange.ended === 'whole', { deadlineMs: 20_000 });
    expect(watched.reasons).toEqual([]);
  });

  test('while it streams, however slowly', async () => {
    const run = runInstance({ behaviour: { tokenIntervalMs: 500, hangs: ['/slots'] } });
    const watched = await watchRun(run, { hangTimeoutMs });
    const exchange = watched.post('/completion', { ...oneWord, n_predict: 12, stream: true });
    await eventually('the answer comes', () => exchange.ended === 'whole', { deadlineMs: 20_000 });
    expect(watched.reasons).toEqual([]);
  });

  test('while its client does not read', async () => {
    const run = runInstance({ behaviour: { tokenIntervalMs: 1, hangs: ['/slots'] } });
    const watched = await watchRun(run, { hangTimeoutMs });
    const exchange = watched.post('/completion', { ...oneWord, n_predict: -1, stream: true });
    await eventually('it streams', () => exchange.body.length > 0);
    exchange.pause();
    process.kill(watched.pid, 'SIGSTOP');
    await delay(longMs);
    expect(watched.reasons).toEqual([]);

    // The same child, once somebody waits for it.
    exchange.resume();
    await watched.hangs();
  });

  test('when a client provokes the 500s: a probe is answered', async () => {
    const run = runInstance({ behaviour: { echo: { status: 500 } } });
    const watched = await watchRun(run, { hangTimeoutMs });
    for (let n = 0; n < 5; n += 1) {
      const exchange = watched.post('/infill', {});
      await eventually('it is answered', () => exchange.ended === 'whole');
    }
    await eventually('the child was probed', () =>
      run.journal.of('answered').some(({ url, status }) => url === '/completion' && status === 200),
    );
    expect(run.journal.of('request').filter(({ url }) => url === '/completion')).toHaveLength(1);
    expect(watched.reasons).toEqual([]);
  });
});

describe.runIf(canListProcesses)('the processor time of a process tree', () => {
  test('has that of a wrapper, its child, and what that has started in another session', async () => {
    const work = `const stop = Date.now() + 60_000;
      (function burn() { const end = performance.now() + 10; while (performance.now() < end);
        if (Date.now() < stop) setTimeout(burn, 40); })()`;
    const wrapper = spawn('sh', ['-c', `setsid "$0" -e "$1" & wait`, process.execPath, work], {
      detached: true,
      stdio: 'ignore',
    });
    const { pid = NaN } = wrapper;
    const whole = new Set<number>();
    atEndOfTest(async () => {
      killTree(pid);
      await eventually('all are gone', () => ![...whole].some(alive));
    });
    await eventually('the worker runs', () =>
      descendants(pid).some(({ command }) => command.includes('performance.now')),
    );
    for (const each of descendants(pid)) whole.add(each.pid);
    const evidence = new CpuEvidence(pid);
    expect(await evidence.look(0)).toEqual({ kind: 'first' });
    expect(new Set(evidence.pids)).toEqual(new Set([pid, ...whole]));
    await eventually('it is seen to work', async () => (await evidence.look(1_000)).kind === 'progress');
  });
});
