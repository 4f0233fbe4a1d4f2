import { describe, expect, test } from 'vitest';
import { failureByWords, failureOf } from '../../../src/supervisor/download-failure.js';

const message = "llama-server could not download 'me/model'";

describe('what the worker wrote tells why it failed', () => {
  test.each([
    ['disk_full', '0.1 E common_pull_file: error writing to file: /cache/blobs/a.downloadInProgress'],
    ['disk_full', 'filesystem error: cannot create directories: No space left on device [/cache]'],
    [
      'hub_refused',
      "E srv download failed for model name=x: Download 'http://hub/a' failed with status code: 403",
    ],
    ['hub_refused', 'E get_repo_commit: error: GET failed (401): Invalid username or password.'],
    [
      'hub_not_found',
      "E srv download failed for model name=x: Download 'http://hub/a' failed with status code: 404",
    ],
    [
      'hub_unreachable',
      "E srv download failed for model name=x: Download 'http://hub/a' failed with status code: -1",
    ],
    ['hub_unreachable', 'E get_repo_commit: error: HTTPLIB failed: Could not establish connection'],
    ['hub_unreachable', 'E common_pull_file: download failed: Failed to read connection (status: -1)'],
    [
      'internal',
      'E common_pull_file: error opening local file for writing: /cache/blobs/a.downloadInProgress',
    ],
  ])('%s: %s', (reason, line) => {
    const failure = failureByWords({ message, lastLines: ['starting', line, 'exiting'] }, 'internal');
    expect(failure).toMatchObject({ reason, lastLines: ['starting', line, 'exiting'] });
    expect(failure.message.startsWith(`${message}: `)).toBe(true);
  });

  test('a disk that is full goes before the failed download that it led to', () => {
    const lastLines = [
      'E common_pull_file: download failed: Failed to read connection (status: -1)',
      'E common_pull_file: error writing to file: a',
    ];
    expect(failureByWords({ message, lastLines }, 'internal').reason).toBe('disk_full');
  });

  test('of other words the last that speaks of an error is told', () => {
    const lastLines = ['error: bad', 'error: worse', 'completed with errors'];
    expect(failureByWords({ message, lastLines }, 'hub_not_found')).toEqual({
      reason: 'hub_not_found',
      message: `${message}: error: worse`,
      lastLines,
    });
    expect(failureByWords({ message, lastLines: [] }, 'hub_not_found').message).toBe(message);
  });
});

test.each([
  ['exited', 'child_gone'],
  ['silent', 'child_timeout'],
] as const)('a worker that has %s is told as such, whatever it wrote before', (how, reason) => {
  const lastLines = ['E common_pull_file: download failed: Failed to read connection (status: -1)'];
  expect(failureOf({ kind: 'failed', how, message, lastLines })).toEqual({ reason, message, lastLines });
});
