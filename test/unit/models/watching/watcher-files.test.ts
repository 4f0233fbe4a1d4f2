import {
  appendFileSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile } from '../tree.js';
import { watchInTest } from './watcher-rig.js';

/** The ways in which editors and tools save a file. */
const WAYS_TO_SAVE: Record<string, (file: string, text: string) => void> = {
  'writing over it': (file, text) => writeFileSync(file, text),
  'a temporary file that is renamed over it': (file, text) => {
    writeFileSync(`${file}.tmp`, text);
    renameSync(`${file}.tmp`, file);
  },
  'a backup by renaming, then a new file (vim)': (file, text) => {
    renameSync(file, `${file}~`);
    writeFileSync(file, text);
  },
  'a backup by a link, then a new file over it (emacs)': (file, text) => {
    rmSync(`${file}~`, { force: true });
    linkSync(file, `${file}~`);
    writeFileSync(`${file}.tmp`, text);
    renameSync(`${file}.tmp`, file);
  },
  'a backup by copying, then writing over it': (file, text) => {
    copyFileSync(file, `${file}~`);
    writeFileSync(file, text);
  },
  'removing it and writing it anew': (file, text) => {
    unlinkSync(file);
    writeFileSync(file, text);
  },
};

describe('a presets file or key file', () => {
  it.each(Object.entries(WAYS_TO_SAVE))('tells of each of several edits by %s', async (_way, save) => {
    const dir = tempDir();
    const presets = writeFile(join(dir, 'presets.ini'), '[a]');
    const keys = writeFile(join(dir, 'keys.txt'), 'key');
    const { tellsOfFile } = await watchInTest({ files: [presets, keys] });
    for (const text of ['[b]', '[c]', '[d]']) {
      await tellsOfFile(`the edit ${text}`, presets, () => save(presets, text));
    }
    await tellsOfFile('an edit of the other', keys, () => save(keys, 'another key'));
  });

  it('tells of an edit that leaves size and time as they were', async () => {
    const file = writeFile(join(tempDir(), 'presets.ini'), '[a]');
    const then = new Date('2026-01-01');
    utimesSync(file, then, then);
    const { tellsOfFile } = await watchInTest({ files: [file] });
    await tellsOfFile('the edit', file, () => {
      writeFileSync(file, '[b]');
      utimesSync(file, then, then);
    });
  });

  it('tells when it appears, with parents that did not exist, goes and appears again', async () => {
    const parent = tempDir();
    const file = join(parent, 'not', 'there', 'presets.ini');
    const { tellsOfFile, notices } = await watchInTest({ files: [file] });
    for (const round of ['first', 'second']) {
      await tellsOfFile(`the ${round} appearance`, file, () => writeFile(file, '[a]'));
      await tellsOfFile(`an edit after the ${round}`, file, () => writeFileSync(file, '[b]'));
      await tellsOfFile(`the ${round} end`, file, () => rmSync(join(parent, 'not'), { recursive: true }));
    }
    expect(notices).toEqual([]);
  });

  it('may be a symbolic link, which tells of its target and of its next one', async () => {
    const dir = tempDir();
    const [one, two] = [writeFile(join(dir, 'one.ini'), '[a]'), writeFile(join(dir, 'two.ini'), '[b]')];
    const file = join(tempDir(), 'presets.ini');
    symlinkSync(one, file);
    const { tellsOfFile, tellsNothing } = await watchInTest({ files: [file] });
    await tellsOfFile('an edit of the target', file, () => appendFileSync(one, '[c]'));
    await tellsOfFile('a replacement of the target', file, () => {
      writeFileSync(`${one}.tmp`, '[d]');
      renameSync(`${one}.tmp`, one);
    });
    await tellsOfFile('another target', file, () => {
      symlinkSync(two, `${file}.tmp`);
      renameSync(`${file}.tmp`, file);
    });
    await tellsOfFile('an edit of the other target', file, () => appendFileSync(two, '[e]'));
    await tellsNothing('an edit of the old target', () => appendFileSync(one, '[f]'));
  });

  it('may be of a Kubernetes ConfigMap, whose directory is swapped by a symbolic link', async () => {
    const dir = tempDir();
    const file = join(dir, 'presets.ini');
    const release = (name: string, text: string): void => {
      writeFile(join(dir, name, 'presets.ini'), text);
      symlinkSync(name, join(dir, '..data_tmp'));
      renameSync(join(dir, '..data_tmp'), join(dir, '..data'));
    };
    release('..2026_01', '[a]');
    symlinkSync('..data/presets.ini', file);
    const { tellsOfFile } = await watchInTest({ files: [file] });
    await tellsOfFile('the first swap', file, () => release('..2026_02', '[b]'));
    await tellsOfFile('the second swap, with a removal', file, () => {
      release('..2026_03', '[c]');
      rmSync(join(dir, '..2026_02'), { recursive: true });
    });
    await tellsOfFile('the third swap', file, () => release('..2026_04', '[d]'));
  });

  it('says nothing of its neighbours', async () => {
    const dir = tempDir();
    const file = writeFile(join(dir, 'presets.ini'), '[a]');
    const log = writeFile(join(dir, 'log.txt'), 'a line\n');
    const { tellsNothing } = await watchInTest({ files: [file] });
    await tellsNothing('a busy neighbour', () => {
      appendFileSync(log, 'another line\n');
      mkdirSync(join(dir, 'models'));
    });
  });

  it('is told as it was given, and not as the catalog', async () => {
    const dir = tempDir();
    const given = `${dir}/./presets.ini`;
    writeFile(given, '[a]');
    const { tellsOfFile } = await watchInTest({ files: [given, given], modelsDirs: [tempDir()] });
    await tellsOfFile('an edit', given, () => writeFileSync(given, '[b]'));
  });

  it('may be in a models directory, of which it says nothing', async () => {
    const dir = tempDir();
    const file = writeFile(join(dir, 'presets.ini'), '[a]');
    const { tellsOfFile, tellsOfCatalog } = await watchInTest({ files: [file], modelsDirs: [dir] });
    await tellsOfFile('an edit', file, () => writeFileSync(file, '[b]'));
    await tellsOfCatalog('a model beside it', () => writeFile(join(dir, 'a.gguf')));
  });

  it('may be a device, which says nothing', async () => {
    const { tellsNothing, notices } = await watchInTest({ files: ['/dev/null'] });
    await tellsNothing('use of it', () => writeFileSync('/dev/null', 'x'));
    expect(notices).toEqual([]);
  });
});
