import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { readKeyFile } from '../../../src/config/key-file.js';
import { KeyRing } from '../../../src/http/auth.js';
import { LiveKeys } from '../../../src/http/live-keys.js';
import { tempDir } from '../../helpers/temp-dir.js';

interface Rig {
  readonly keys: LiveKeys;
  readonly file: string;
  /** Has the file hold this and the keys read again. */
  readonly write: (text: string) => Promise<void>;
  /** The records of the log, and its text. */
  readonly log: () => { readonly msg: string; readonly reason?: string }[];
  readonly logged: () => string;
}

/** Keys of a file with that text, and those that are given besides. */
function keysFrom(text: string | undefined, fixedApiKeys: readonly string[] = []): Rig {
  const file = join(tempDir(), 'keys');
  if (text !== undefined) writeFileSync(file, text);
  const apiKeyFile = text === undefined ? undefined : file;
  const apiKeys = [...fixedApiKeys, ...(text === undefined ? [] : readKeyFile(file))];
  const lines: string[] = [];
  const logger = pino({}, { write: (line) => lines.push(line) });
  const keys = new LiveKeys({ apiKeys, fixedApiKeys, apiKeyFile }, logger);
  return {
    keys,
    file,
    write: async (next) => {
      writeFileSync(file, next);
      await keys.reload();
    },
    log: () => lines.map((line) => JSON.parse(line) as { msg: string }),
    logged: () => lines.join(''),
  };
}

/** Which of `candidates` are valid. */
function valid({ keys }: Rig, ...candidates: string[]): string[] {
  return candidates.filter((key) => keys.ring.holds(key));
}

describe('without any key', () => {
  it('everything is allowed, and there is none for our own commands', async () => {
    const rig = keysFrom(undefined);
    expect(rig.keys.ring.isEmpty).toBe(true);
    expect(rig.keys.ofThisRun).toBeUndefined();
    await rig.keys.reload();
    expect(rig.keys.ring.isEmpty).toBe(true);
    expect(rig.log()).toEqual([]);
  });
});

describe('the keys that are valid', () => {
  it('are those given, those of the file, and one of this run that nobody can guess', () => {
    const rig = keysFrom('# of the house\n file-1 \n\nfile-2\r\n', ['given']);
    const own = rig.keys.ofThisRun ?? '';
    expect(valid(rig, 'given', 'file-1', 'file-2', own)).toEqual(['given', 'file-1', 'file-2', own]);
    expect(valid(rig, '', 'fil', 'file-1 ', 'GIVEN', '# of the house', 'file-1\nfile-2')).toEqual([]);
    expect(own.length).toBeGreaterThanOrEqual(32);
    expect(keysFrom('x').keys.ofThisRun).not.toBe(own);
  });

  it('are those of the file as it is now, from the next request on; the others stay', async () => {
    const rig = keysFrom('old\nkept\n', ['given']);
    const own = rig.keys.ofThisRun ?? '';
    const ring = rig.keys.ring;
    await rig.write('kept\nnew\n');
    expect(valid(rig, 'old', 'kept', 'new', 'given', own)).toEqual(['kept', 'new', 'given', own]);
    expect(rig.keys.ring).toBe(ring);
    expect(rig.keys.ofThisRun).toBe(own);
  });

  it.each(['', '\n \n', '# kept for later\n#one\n'])(
    'stay as they were when the file holds none any more, and nobody else has one: %j',
    async (text) => {
      const rig = keysFrom('one');
      await rig.write(text);
      expect(valid(rig, 'one', '')).toEqual(['one']);
      expect(rig.log()).toMatchObject([{ level: 40, msg: 'the API keys stay as they were' }]);
      expect(rig.log()[0]?.reason).toContain(rig.file);
    },
  );

  it('are those given alone once the file is emptied', async () => {
    const rig = keysFrom('one', ['given']);
    await rig.write('# none\n');
    expect(valid(rig, 'one', 'given', '')).toEqual(['given']);
    expect(rig.log()).toMatchObject([{ level: 30, keys: 0, msg: 'API keys read again' }]);
  });

  it('are not said to be read again when they are as at the start', async () => {
    const rig = keysFrom('one', ['given']);
    await rig.keys.reload();
    expect(rig.log()).toEqual([]);
  });

  it('stay as they were while the file cannot be read, and follow it when it is back', async () => {
    const rig = keysFrom('one');
    renameSync(rig.file, `${rig.file}.aside`);
    await rig.keys.reload();
    mkdirSync(rig.file);
    await rig.keys.reload();
    expect(valid(rig, 'one')).toEqual(['one']);
    expect(rig.log().map(({ reason }) => reason)).toEqual([
      expect.stringContaining('ENOENT'),
      expect.stringContaining('EISDIR'),
    ]);
    rmSync(rig.file, { recursive: true });
    await rig.write('two');
    expect(valid(rig, 'one', 'two')).toEqual(['two']);
  });

  it('are never written into the log', async () => {
    const rig = keysFrom('secret-1', ['secret-2']);
    await rig.write('secret-3');
    renameSync(rig.file, `${rig.file}.aside`);
    await rig.keys.reload();
    expect(rig.log()).toMatchObject([{ keys: 1, msg: 'API keys read again' }, { level: 40 }]);
    for (const key of ['secret-1', 'secret-2', 'secret-3', rig.keys.ofThisRun ?? '']) {
      expect(rig.logged()).not.toContain(key);
    }
  });
});

describe('a key ring', () => {
  it('without keys holds none, the empty one neither', () => {
    const ring = new KeyRing([]);
    expect([ring.isEmpty, ring.holds('')]).toEqual([true, false]);
  });

  it('holds what was put in last', () => {
    const ring = new KeyRing(['a', 'a', 'b']);
    expect([ring.holds('a'), ring.holds('b')]).toEqual([true, true]);
    ring.replace(['c']);
    expect([ring.holds('a'), ring.holds('b'), ring.holds('c'), ring.isEmpty]).toEqual([
      false,
      false,
      true,
      false,
    ]);
  });

  it('takes a key as the bytes that a client sends, and in no other encoding', () => {
    const ring = new KeyRing(['schlüssel-🔑']);
    expect(ring.holds(Buffer.from('schlüssel-🔑'))).toBe(true);
    expect(ring.holds(Buffer.from('schlüssel-🔑', 'latin1'))).toBe(false);
  });
});
