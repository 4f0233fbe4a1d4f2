import { describe, expect, test } from 'vitest';
import { lookIntervalMs } from '../../../../src/instance/hang/hang-watch.js';
import { HangRig } from './hang-rig.js';

/** Long enough for every hang to be found. */
const hourS = 3_600;

describe('a child of which nothing advances', () => {
  test('hangs after the time-out, and up to three looks, and this is said once', async () => {
    const rig = new HangRig();
    rig.request();
    const afterS = await rig.secondsUntilHang(hourS);
    expect(afterS).toBeGreaterThanOrEqual(80);
    expect(afterS).toBeLessThanOrEqual(80 + 3 * 10);
    await rig.seconds(hourS);
    expect(rig.reasons).toHaveLength(1);
  });

  test('hangs no earlier than the time-out after its last byte', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(1_000, () => request.progressed());
    expect(await rig.secondsUntilHang(hourS)).toBeGreaterThanOrEqual(80);
  });

  test('is described: how long, how many requests, what was looked at', async () => {
    const rig = new HangRig();
    rig.request();
    rig.request();
    await rig.secondsUntilHang(hourS);
    expect(rig.reasons).toEqual([
      'made no progress for 80 s with 2 requests in flight (--hang-timeout 80 s): it sent nothing but comments, ' +
        'no processor time, /slots did not change, no use of a GPU',
    ]);
  });

  test('hangs also while new requests keep coming and giving up', async () => {
    const rig = new HangRig();
    rig.request();
    const afterS = await rig.secondsUntilHang(hourS, () => rig.request().ended());
    expect(afterS).toBeLessThanOrEqual(110);
  });

  test('hangs also when every client gives up before the time-out, one after the other', async () => {
    const rig = new HangRig();
    let second = 0;
    let request = rig.request();
    const afterS = await rig.secondsUntilHang(hourS, () => {
      second += 1;
      if (second % 30 === 20) request.ended();
      if (second % 30 === 0) request = rig.request();
    });
    // Two seconds of three somebody waits.
    expect(afterS).toBeGreaterThanOrEqual((80 * 3) / 2 - 30);
    expect(afterS).toBeLessThanOrEqual((110 * 3) / 2 + 30);
  });

  test('hangs also when no client waits as long as from one look to the next', async () => {
    const rig = new HangRig();
    let second = 0;
    let request = rig.request();
    const afterS = await rig.secondsUntilHang(hourS, () => {
      second += 1;
      if (second % 10 === 5) request.ended();
      if (second % 10 === 0) request = rig.request();
    });
    expect(afterS).toBeGreaterThanOrEqual(80 * 2 - 10);
    expect(afterS).toBeLessThanOrEqual(110 * 2 + 10);
  });

  test('hangs also when requests that end let others begin in the same moment', async () => {
    const rig = new HangRig();
    let request = rig.request();
    const afterS = await rig.secondsUntilHang(hourS, () => {
      const next = rig.request();
      request.ended();
      request = next;
    });
    expect(afterS).toBeLessThanOrEqual(110);
  });

  test('hangs also when some of its clients do not read: others wait', async () => {
    const rig = new HangRig();
    rig.watch.begin(() => true);
    rig.request();
    expect(await rig.secondsUntilHang(hourS)).toBeLessThanOrEqual(110);
  });

  // llama-server refuses what is not right, or not to be had from this model, before its loop has heard of it.
  test.each([400, 401, 404, 501])('hangs also while it refuses others with %i', async (statusCode) => {
    const rig = new HangRig();
    rig.request();
    let second = 0;
    const afterS = await rig.secondsUntilHang(hourS, () => {
      second += 1;
      if (second % 8 === 0) void rig.isAnswered(statusCode);
    });
    expect(afterS).toBeLessThanOrEqual(110);
  });

  test('hangs also while it answers others with 500: that may come from before its loop, too', async () => {
    const rig = new HangRig();
    rig.request();
    let second = 0;
    const afterS = await rig.secondsUntilHang(hourS, () => {
      second += 1;
      if (second % 8 === 0) void rig.isAnswered(500);
    });
    expect(afterS).toBeLessThanOrEqual(110);
  });

  test('hangs also when one sign cannot be seen, or a look at it does not come back, or fails', async () => {
    for (const value of ['unknown', 'stuck', 'broken'] as const) {
      const rig = new HangRig();
      rig.gpu.value = value;
      rig.request();
      expect(await rig.secondsUntilHang(hourS), value).toBeLessThanOrEqual(130);
      expect(rig.reasons, value).toEqual([expect.not.stringContaining('GPU')]);
    }
  });

  test('is not said to hang once the watch is closed, though it was being looked at', async () => {
    const rig = new HangRig();
    rig.request();
    await rig.seconds(85);
    rig.gpu.value = 'stuck';
    await rig.seconds(8);
    rig.watch.close();
    await rig.seconds(hourS);
    expect(rig.reasons).toEqual([]);
    expect(rig.clock.timers).toBe(0);
  });
});

describe('a child that works is left alone', () => {
  test.each(['cpu', 'slots', 'gpu'] as const)('while only its %s advances', async (sign) => {
    const rig = new HangRig();
    rig.request();
    await rig.seconds(hourS, () => rig[sign].advance());
    expect(rig.reasons).toEqual([]);
  });

  test('while a sign advances in no more than one look of seven', async () => {
    const rig = new HangRig();
    rig.request();
    let second = 0;
    await rig.seconds(hourS, () => {
      second += 1;
      if (second % 70 === 0) rig.cpu.advance();
    });
    expect(rig.reasons).toEqual([]);
  });

  test('while one of its answers goes on, and is not even looked at', async () => {
    const rig = new HangRig();
    rig.request();
    const other = rig.request();
    await rig.seconds(hourS, () => other.progressed());
    expect(rig.reasons).toEqual([]);
    expect(rig.cpu.looks).toBe(0);
  });

  test('while it answers requests, whatever becomes of one of them', async () => {
    const rig = new HangRig();
    rig.request();
    let second = 0;
    await rig.seconds(hourS, () => {
      second += 1;
      if (second % 60 === 0) void rig.isAnswered(200);
    });
    expect(rig.reasons).toEqual([]);
  });

  test.each([400, 500, 501])(
    'while it refuses whatever it is asked, within a moment, with %i',
    async (statusCode) => {
      const rig = new HangRig();
      for (let n = 0; n < hourS; n += 1) {
        const request = rig.request();
        await rig.clock.passes(500);
        request.answered(statusCode);
        await rig.clock.passes(400);
        request.ended();
        await rig.clock.passes(100);
      }
      expect(rig.reasons).toEqual([]);
    },
  );

  test('when a look at it was late but has seen progress: no other look will', async () => {
    const rig = new HangRig();
    rig.request();
    await rig.seconds(45);
    rig.cpu.value = 'stuck';
    await rig.seconds(17);
    rig.cpu.comesBack({ kind: 'progress' });
    rig.cpu.value = 0;
    expect(await rig.secondsUntilHang(hourS)).toBeGreaterThanOrEqual(80);
  });

  test('while it says by itself how far it is in waking up', async () => {
    const rig = new HangRig();
    rig.request();
    await rig.seconds(hourS, () => rig.watch.progressed());
    expect(rig.reasons).toEqual([]);
  });

  test('while nobody reads what it has sent', async () => {
    const rig = new HangRig();
    let paused = true;
    const request = rig.watch.begin(() => paused);
    rig.watch.begin(() => true);
    await rig.seconds(hourS);
    expect(rig.reasons).toEqual([]);
    expect(rig.cpu.looks).toBe(0);

    paused = false;
    request.progressed();
    expect(await rig.secondsUntilHang(hourS)).toBeGreaterThanOrEqual(80);
  });

  test('while it has nothing to do, however long, and then costs no timer', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(79);
    request.ended();
    request.ended();
    await rig.clock.passes(10_000);
    expect(rig.clock.timers).toBe(0);
    await rig.seconds(hourS);
    expect(rig.reasons).toEqual([]);
    expect(rig.clock.timers).toBe(0);
  });

  test('when it was frozen together with its supervisor', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(25);
    await rig.clock.isFrozenFor(24 * hourS * 1_000);
    expect(rig.reasons).toEqual([]);
    await rig.seconds(hourS, () => request.progressed());
    expect(rig.reasons).toEqual([]);
  });

  test('when nothing but its bytes can be seen: they alone do not tell a hang from a long prompt', async () => {
    const rig = new HangRig();
    for (const sign of [rig.cpu, rig.slots, rig.gpu]) sign.value = 'unknown';
    rig.request();
    await rig.seconds(hourS);
    expect(rig.reasons).toEqual([]);
  });

  test('when a byte comes while it is being looked at', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(85);
    rig.gpu.value = 'stuck';
    await rig.seconds(8);
    request.progressed();
    await rig.seconds(60);
    expect(rig.reasons).toEqual([]);
  });

  test('when the last client leaves while it is being looked at', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(85);
    rig.gpu.value = 'stuck';
    await rig.seconds(8);
    request.ended();
    await rig.seconds(hourS);
    expect(rig.reasons).toEqual([]);
    expect(rig.clock.timers).toBe(0);
  });
});

describe('looks', () => {
  test('cost no more than need be: one that shows progress spares those after it', async () => {
    const rig = new HangRig();
    rig.request();
    await rig.seconds(15);
    const before = rig.gpu.looks;
    await rig.seconds(600, () => rig.cpu.advance());
    expect(rig.cpu.looks).toBeGreaterThan(50);
    expect(rig.slots.looks).toBe(before);
    expect(rig.gpu.looks).toBe(before);
  });

  test('at something that does not answer are not repeated meanwhile', async () => {
    const rig = new HangRig({ hangTimeoutMs: 600_000 });
    rig.slots.value = 'stuck';
    rig.request();
    await rig.seconds(300);
    expect(rig.slots.looks).toBe(1);
    expect(rig.cpu.looks).toBeGreaterThan(5);
  });

  test('are one at a time: a request that begins meanwhile begins no other', async () => {
    const rig = new HangRig();
    const request = rig.request();
    await rig.seconds(9);
    rig.slots.value = 'stuck';
    await rig.seconds(2);
    expect([rig.cpu.looks, rig.slots.looks, rig.gpu.looks]).toEqual([1, 1, 0]);
    request.ended();
    rig.request();
    expect(rig.clock.timers).toBe(1);
    await rig.seconds(8);
    expect([rig.cpu.looks, rig.slots.looks, rig.gpu.looks]).toEqual([1, 1, 0]);
  });

  test.each([
    [1_000, 1_000],
    [8_000, 1_000],
    [80_000, 10_000],
    [600_000, 30_000],
  ])('come, for a time-out of %i ms, every %i ms', (hangTimeoutMs, intervalMs) => {
    expect(lookIntervalMs(hangTimeoutMs)).toBe(intervalMs);
  });
});

describe('a child that answers with 5xx', () => {
  test('three times in a row is asked for one token, and is left alone when it gives one', async () => {
    const rig = new HangRig();
    await rig.isAnswered(500);
    await rig.isAnswered(503);
    expect(rig.probes).toBe(0);
    await rig.isAnswered(500);
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
  });

  test('to a client that provokes it all day is asked no more often than every 30 s, and left alone', async () => {
    const rig = new HangRig();
    await rig.seconds(hourS, () => void rig.isAnswered(500));
    expect(rig.probes).toBeGreaterThan(60);
    expect(rig.probes).toBeLessThanOrEqual(hourS / 30);
    expect(rig.reasons).toEqual([]);
  });

  test('and has given a token is asked again only after three more', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(60);
    await rig.isAnswered(500);
    await rig.isAnswered(500);
    expect(rig.probes).toBe(1);
    await rig.isAnswered(500);
    expect(rig.probes).toBe(2);
  });

  test('is not asked while anything good is answered in between', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 5; n += 1) {
      await rig.isAnswered(500);
      await rig.isAnswered(500);
      await rig.isAnswered(200);
    }
    expect(rig.probes).toBe(0);
  });

  test.each([400, 404, 501])('is asked though it refuses others with %i in between', async (statusCode) => {
    const rig = new HangRig();
    for (let n = 0; n < 3; n += 1) {
      expect(rig.probes).toBe(0);
      await rig.isAnswered(statusCode);
      await rig.isAnswered(500);
    }
    expect(rig.probes).toBe(1);
  });

  test('is not asked while another answer goes on', async () => {
    const rig = new HangRig();
    const other = rig.request();
    await rig.seconds(60, () => {
      other.progressed();
      void rig.isAnswered(500);
    });
    expect(rig.probes).toBe(0);
  });

  test('hangs when two probes are answered so, too', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 500 }, afterMs: 50 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(503);
    rig.cpu.advance();
    await rig.seconds(2);
    expect(rig.probes).toBe(2);
    expect(rig.reasons).toEqual([
      'answered the last 3 requests with a 5xx (503) and answered two one-token completions with 500, too',
    ]);
  });

  test('hangs when it breaks off one request after the other, and two probes as well', async () => {
    const rig = new HangRig();
    rig.answer = { is: 'broken', afterMs: 5 };
    for (let n = 0; n < 3; n += 1) rig.request().broken('ECONNREFUSED');
    await rig.seconds(2);
    expect(rig.probes).toBe(2);
    expect(rig.reasons).toEqual([
      'broke off the last 3 requests (ECONNREFUSED) and broke off two one-token completions, too',
    ]);
  });

  test('that breaks off what one client sends is left alone when it answers a probe', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 5; n += 1) rig.request().broken('other side closed');
    await rig.seconds(5);
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
  });

  // What llama-server decodes together when its cache is full fails together.
  test('is left alone when only the first of two probes fails', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 500 }, afterMs: 50 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.clock.passes(500);
    expect(rig.probes).toBe(1);
    rig.answer = { is: 'alive', afterMs: 50 };
    await rig.seconds(5);
    expect(rig.probes).toBe(2);
    expect(rig.reasons).toEqual([]);
  });

  test('is not judged by a probe that was called off', async () => {
    const rig = new HangRig();
    rig.answer = { is: 'called off', afterMs: 0 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(5);
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
  });

  test('hangs when a probe is not answered and nothing else advances', async () => {
    const rig = new HangRig();
    rig.answer = { is: 'no answer', afterMs: 30_000 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(31);
    expect(rig.reasons).toEqual([
      'answered the last 3 requests with a 5xx (500) and did not answer a one-token completion within 30 s, ' +
        'no processor time, /slots did not change, no use of a GPU',
    ]);
  });

  test('is left alone when a probe is not answered and nothing else can be seen of it', async () => {
    const rig = new HangRig();
    for (const sign of [rig.cpu, rig.slots, rig.gpu]) sign.value = 'unknown';
    rig.answer = { is: 'no answer', afterMs: 30_000 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(60);
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
  });

  test.each(['cpu', 'slots', 'gpu'] as const)(
    'has no time for a probe but is left alone while its %s advances',
    async (sign) => {
      const rig = new HangRig();
      rig.answer = { is: 'no answer', afterMs: 30_000 };
      await rig.seconds(600, () => {
        rig[sign].advance();
        void rig.isAnswered(500);
      });
      expect(rig.probes).toBeGreaterThan(5);
      expect(rig.reasons).toEqual([]);
    },
  );

  test.each(['answered with 500', 'not answered'])(
    'is left alone when something good comes while its probe is %s',
    async (how) => {
      const rig = new HangRig();
      const other = rig.request();
      rig.answer = { is: how === 'not answered' ? 'no answer' : { failedWith: 500 }, afterMs: 3_000 };
      for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
      await rig.seconds(1);
      other.progressed();
      await rig.seconds(10);
      expect(rig.probes).toBe(1);
      expect(rig.reasons).toEqual([]);
    },
  );

  // llama-server refuses with 500 what does not fit into a cache that another, long prompt has filled.
  test('while it works on a long prompt of another client is left alone, though its probe fails', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 500 }, afterMs: 50 };
    rig.request();
    await rig.seconds(20);
    await rig.seconds(hourS, () => {
      rig.cpu.advance();
      void rig.isAnswered(500);
    });
    expect(rig.probes).toBeGreaterThan(60);
    expect(rig.reasons).toEqual([]);
  });

  test('while it does nothing for another client that has waited for long, hangs', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 500 }, afterMs: 50 };
    rig.request();
    await rig.seconds(20);
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(5);
    expect(rig.reasons).toEqual([expect.stringContaining('with 500, too, no processor time')]);
  });

  test('while its model sleeps, or wakes, is not asked, and after it is', async () => {
    const rig = new HangRig();
    rig.awake = false;
    await rig.seconds(60, () => void rig.isAnswered(500));
    expect(rig.probes).toBe(0);
    rig.awake = true;
    await rig.isAnswered(500);
    expect(rig.probes).toBe(1);
  });

  test('is not judged by a probe under which its model went to sleep', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 503 }, afterMs: 3_000 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    rig.awake = false;
    await rig.seconds(10);
    // A second one would wake it.
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
  });

  test('is not judged once the watch is closed', async () => {
    const rig = new HangRig();
    rig.answer = { is: { failedWith: 500 }, afterMs: 3_000 };
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    rig.watch.close();
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    await rig.seconds(60);
    expect(rig.probes).toBe(1);
    expect(rig.reasons).toEqual([]);
    expect(rig.clock.timers).toBe(0);
  });

  test('is not asked any more once the watch is closed', async () => {
    const rig = new HangRig();
    rig.watch.close();
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    expect(rig.probes).toBe(0);
  });

  test('goes on being watched for a hang after a probe', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 3; n += 1) await rig.isAnswered(500);
    rig.request();
    expect(await rig.secondsUntilHang(hourS)).toBeLessThanOrEqual(110);
  });
});
