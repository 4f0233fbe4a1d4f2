import { describe, expect, it } from 'vitest';
import { tellingLine, withLastWords } from '../../../src/instance/telling-line.js';

describe('the line that tells why', () => {
  it('is the first that llama-server calls an error, without what stands before its words', () => {
    const lines = [
      '0.00.000.458 I srv  llama_server: initializing ...',
      "0.00.010.100 E llama_model_load: error loading model: unknown model architecture: 'llamb'",
      '0.00.010.200 E srv  llama_server: exiting due to model loading error',
    ];
    expect(tellingLine(lines)).toBe(
      "llama_model_load: error loading model: unknown model architecture: 'llamb'",
    );
    expect(tellingLine(lines.slice(2))).toBe('exiting due to model loading error');
  });

  it('is else the last one that tells of a failure', () => {
    expect(tellingLine(['failed: a', 'cannot: b', 'hint: try --help'])).toBe('cannot: b');
  });

  it('is else the last one, and of nothing nothing', () => {
    expect(tellingLine(['one', 'two'])).toBe('two');
    expect(tellingLine([])).toBeUndefined();
  });
});

describe('what is told of a failure', () => {
  it.each([
    ['exited with code 1', ['error: no room'], 'exited with code 1; it said: error: no room'],
    ['ended because it said error: no room', ['error: no room'], 'ended because it said error: no room'],
    ['was ended by SIGKILL', [], 'was ended by SIGKILL'],
  ])('%s, having said %o', (message, lines, text) => {
    expect(withLastWords(message, lines)).toBe(text);
  });
});
