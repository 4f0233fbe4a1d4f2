import { homedir } from 'node:os';
import { describe, expect, it } from 'vitest';
import { cacheDirectory, runtimeDirectory, stateDirectory } from '../../../src/config/directories.js';

const uid = String(process.getuid?.());

describe('directories', () => {
  it('follow the XDG variables', () => {
    const env = { HOME: '/h', XDG_CACHE_HOME: '/c', XDG_STATE_HOME: '/s', XDG_RUNTIME_DIR: '/r' };
    expect(cacheDirectory(env)).toBe('/c/llama-supervisor');
    expect(stateDirectory(env, 8080)).toBe('/s/llama-supervisor/8080');
    expect(runtimeDirectory(env)).toBe('/r/llama-supervisor');
  });

  it('are below the home without them, the runtime one in a temporary place of this user', () => {
    const env = { HOME: '/h', TMPDIR: '/t' };
    expect(cacheDirectory(env)).toBe('/h/.cache/llama-supervisor');
    expect(stateDirectory(env, 1)).toBe('/h/.local/state/llama-supervisor/1');
    expect(runtimeDirectory(env)).toBe(`/t/llama-supervisor-${uid}`);
  });

  it('are the ones systemd gives to the unit, of several the first', () => {
    const env = {
      STATE_DIRECTORY: '/var/lib/x:/var/lib/y',
      RUNTIME_DIRECTORY: '/run/x',
      XDG_RUNTIME_DIR: '/r',
    };
    expect(stateDirectory(env, 8080)).toBe('/var/lib/x');
    expect(runtimeDirectory(env)).toBe('/run/x');
  });

  it('ignore relative and empty variables, as the XDG specification says', () => {
    const env = {
      HOME: '',
      XDG_CACHE_HOME: 'relative',
      STATE_DIRECTORY: '',
      TMPDIR: '/t',
      RUNTIME_DIRECTORY: '',
    };
    expect(cacheDirectory(env)).toBe(`${homedir()}/.cache/llama-supervisor`);
    expect(stateDirectory(env, 1)).toBe(`${homedir()}/.local/state/llama-supervisor/1`);
    expect(runtimeDirectory(env)).toBe(`/t/llama-supervisor-${uid}`);
  });
});
