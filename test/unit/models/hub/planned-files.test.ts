import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import type { PlannedFile } from '../../../../src/models/hub/download-plan.js';
import {
  firstNotThere,
  freeBytes,
  makeResumable,
  missingBytes,
  removeUnfinished,
} from '../../../../src/models/hub/planned-files.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile, writeLink } from '../tree.js';

let dir: string;

beforeEach(() => {
  dir = tempDir();
});

/** A file of ten bytes that is to come. */
function planned(name = 'a', sizeBytes: number | undefined = 10): PlannedFile {
  const bytesPath = join(dir, 'blobs', name);
  return {
    path: name,
    sizeBytes,
    finalPath: join(dir, 'snapshot', name),
    bytesPath,
    partialPath: `${bytesPath}.downloadInProgress`,
  };
}

function writeWhole(file: PlannedFile, content = '0123456789'): void {
  writeFile(file.bytesPath, content);
  writeLink(file.finalPath, `../blobs/${file.path}`);
}

describe('what is missing', () => {
  test('is all of a file of which nothing is there, and nothing of a whole one', async () => {
    const whole = planned('whole');
    writeWhole(whole);
    expect(await missingBytes([planned('a'), whole])).toBe(10);
  });

  test('is the rest of one that has begun to come, or that has not got its name yet', async () => {
    const partial = planned('partial');
    writeFile(partial.partialPath, '012');
    const nameless = planned('nameless');
    writeFile(nameless.bytesPath, '0123456789');
    expect(await missingBytes([partial, nameless])).toBe(7);
  });

  test('is nothing of a file whose size nobody knows', async () => {
    expect(await missingBytes([{ ...planned(), sizeBytes: undefined }])).toBe(0);
  });
});

describe('the first that is not there', () => {
  test('is one without its name, or with too few bytes', async () => {
    const whole = planned('whole');
    writeWhole(whole);
    const short = planned('short');
    writeWhole(short, '012');
    const none = planned('none');
    expect(await firstNotThere([whole])).toBeUndefined();
    expect(await firstNotThere([whole, short, none])).toEqual({ file: short, bytes: 3 });
    expect(await firstNotThere([whole, none, short])).toEqual({ file: none, bytes: undefined });
  });

  test('is none when the size of what is there is not known', async () => {
    const file = { ...planned(), sizeBytes: undefined };
    writeWhole(file, '0');
    expect(await firstNotThere([file])).toBeUndefined();
  });
});

describe('to be gone on with', () => {
  test('a file that was cut off under its hash becomes unfinished again', async () => {
    const file = planned();
    writeWhole(file, '012');
    await makeResumable([file]);
    expect(existsSync(file.bytesPath)).toBe(false);
    expect(readFileSync(file.partialPath, 'utf8')).toBe('012');
  });

  test('of a whole one without its name the last byte is left to the worker', async () => {
    const file = planned();
    writeFile(file.partialPath, '0123456789');
    await makeResumable([file]);
    expect(statSync(file.partialPath).size).toBe(9);
  });

  test('one that is longer than it should be is removed', async () => {
    const file = planned();
    writeFile(file.partialPath, '0123456789+');
    await makeResumable([file]);
    expect(existsSync(file.partialPath)).toBe(false);
  });

  test('what is as it should be stays', async () => {
    const whole = planned('whole');
    writeWhole(whole);
    const partial = planned('partial');
    writeFile(partial.partialPath, '012');
    const unknown = { ...planned('unknown'), sizeBytes: undefined };
    writeFile(unknown.partialPath, '0123456789+');
    await makeResumable([whole, partial, unknown, planned('none')]);
    expect(readFileSync(whole.finalPath, 'utf8')).toBe('0123456789');
    expect(readFileSync(partial.partialPath, 'utf8')).toBe('012');
    expect(readFileSync(unknown.partialPath, 'utf8')).toBe('0123456789+');
  });
});

test('only unfinished files are removed', async () => {
  const whole = planned('whole');
  writeWhole(whole);
  const partial = planned('partial');
  writeFile(partial.partialPath, '012');
  await removeUnfinished([whole, partial, planned('none')]);
  expect(existsSync(whole.finalPath)).toBe(true);
  expect(existsSync(partial.partialPath)).toBe(false);
});

test('the room on the disk of a directory is known before that exists', async () => {
  const free = await freeBytes(join(dir, 'not', 'there', 'yet'));
  expect(free).toBeGreaterThan(0);
  expect(Number.isSafeInteger(free)).toBe(true);
});
