import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { findLlamaServer, noBinaryMessage, UnusableBinaryError } from '../../../src/config/binary.js';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'binary-'));
});
afterEach(() => {
  rmSync(root, { recursive: true });
});

function program(...path: string[]): string {
  const file = join(root, ...path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, '#!/bin/sh\n');
  chmodSync(file, 0o755);
  return file;
}

const inVendor = ['package', 'vendor', 'llama.cpp', 'build', 'bin', 'llama-server'] as const;
const inCache = ['cache', 'llama-supervisor', 'builds', 'current'] as const;

function find(explicit?: string, env: NodeJS.ProcessEnv = {}): ReturnType<typeof findLlamaServer> {
  return findLlamaServer({
    explicit,
    env: { XDG_CACHE_HOME: join(root, 'cache'), PATH: join(root, 'bin'), ...env },
    packageRoot: join(root, 'package'),
  });
}

describe('finding llama-server', () => {
  it('takes the flag, the variable, the build of this checkout, the cached build and PATH, in that order', () => {
    expect(find()).toBeUndefined();
    const onPath = program('bin', 'llama-server');
    expect(find()).toEqual({ path: onPath, origin: 'path' });
    const cached = program(...inCache);
    expect(find()).toEqual({ path: cached, origin: 'built' });
    const built = program(...inVendor);
    expect(find()).toEqual({ path: built, origin: 'built' });
    const named = program('named');
    expect(find(undefined, { LLAMA_SERVER_BIN: named })).toEqual({ path: named, origin: 'env' });
    const flagged = program('flagged');
    expect(find(flagged, { LLAMA_SERVER_BIN: named })).toEqual({ path: flagged, origin: 'flag' });
  });

  it('follows links, and passes over one that leads nowhere', () => {
    const onPath = program('bin', 'llama-server');
    mkdirSync(dirname(join(root, ...inVendor)), { recursive: true });
    symlinkSync(join(root, 'gone'), join(root, ...inVendor));
    expect(find()).toEqual({ path: onPath, origin: 'path' });
    // The program and not the link, which a later build turns to another one.
    const linked = program('gone');
    expect(find()).toEqual({ path: linked, origin: 'built' });
  });

  it('passes over directories and files without the right to run on PATH', () => {
    mkdirSync(join(root, 'one', 'llama-server'), { recursive: true });
    chmodSync(program('two', 'llama-server'), 0o644);
    const good = program('three', 'llama-server');
    const path = ['', join(root, 'one'), join(root, 'two'), join(root, 'missing'), join(root, 'three')].join(
      ':',
    );
    expect(find(undefined, { PATH: path })).toEqual({ path: good, origin: 'path' });
  });

  it('takes an empty variable as unset, and makes a relative path absolute', () => {
    const named = program('named');
    expect(find(undefined, { LLAMA_SERVER_BIN: '' })).toBeUndefined();
    expect(find(relative(process.cwd(), named))).toEqual({ path: named, origin: 'flag' });
  });

  it('refuses a named one that cannot run, instead of taking another', () => {
    program('bin', 'llama-server');
    const unreadable = program('plain');
    chmodSync(unreadable, 0o644);
    const missing = join(root, 'missing');
    expect(() => find(missing)).toThrow(UnusableBinaryError);
    expect(() => find(missing)).toThrow(
      `--llama-server names ${missing}, which does not exist. Give the path of`,
    );
    expect(() => find(join(unreadable, 'below'))).toThrow(/which does not exist/);
    expect(() => find(unreadable)).toThrow(/which is not executable/);
    expect(() => find(undefined, { LLAMA_SERVER_BIN: root })).toThrow(
      `LLAMA_SERVER_BIN names ${root}, which is a directory.`,
    );
  });

  it('says how to get one', () => {
    expect(noBinaryMessage()).toMatch(/build-llama\.sh/);
    expect(noBinaryMessage()).toMatch(/--llama-server/);
  });
});
