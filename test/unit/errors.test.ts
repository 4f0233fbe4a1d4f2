import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { asRouterError, RouterError, type ErrorCode } from '../../src/errors.js';

/**
 * What each error says on the wire. The statuses and types of the native router's own answers are those of
 * llama-server (tools/server/server-models.cpp, server-common.cpp); the rest are HTTP's.
 */
const wire: Record<ErrorCode, [status: number, type: string]> = {
  body_malformed: [400, 'invalid_request_error'],
  body_encoded: [415, 'invalid_request_error'],
  body_too_large: [413, 'invalid_request_error'],
  body_timeout: [408, 'invalid_request_error'],
  body_memory_full: [503, 'unavailable_error'],
  model_missing: [400, 'invalid_request_error'],
  model_unknown: [400, 'invalid_request_error'],
  model_unknown_to_load: [404, 'not_found_error'],
  model_unknown_to_remove: [404, 'not_found_error'],
  model_unknown_to_unload: [400, 'invalid_request_error'],
  model_invalid: [503, 'unavailable_error'],
  model_not_loaded: [400, 'invalid_request_error'],
  model_already_running: [400, 'invalid_request_error'],
  model_not_running: [400, 'invalid_request_error'],
  model_downloading: [400, 'invalid_request_error'],
  model_not_removable: [400, 'invalid_request_error'],
  remove_failed: [500, 'server_error'],
  model_exists: [400, 'invalid_request_error'],
  hub_name_invalid: [400, 'invalid_request_error'],
  hub_not_found: [404, 'not_found_error'],
  hub_refused: [403, 'permission_error'],
  hub_unreachable: [502, 'server_error'],
  hub_offline: [403, 'permission_error'],
  disk_full: [507, 'server_error'],
  too_many_downloads: [429, 'overloaded_error'],
  stream_stopped: [400, 'invalid_request_error'],
  stream_unknown: [404, 'not_found_error'],
  stream_not_yet: [503, 'unavailable_error'],
  helper_failed: [503, 'unavailable_error'],
  too_many_listeners: [429, 'overloaded_error'],
  too_many_connections: [503, 'unavailable_error'],
  feature_disabled: [403, 'feature_disabled'],
  origin_foreign: [403, 'permission_error'],
  model_changing: [503, 'unavailable_error'],
  model_unloaded_meanwhile: [400, 'invalid_request_error'],
  model_failing: [503, 'unavailable_error'],
  out_of_memory: [503, 'unavailable_error'],
  load_failed: [503, 'unavailable_error'],
  queue_full: [429, 'overloaded_error'],
  queue_timeout: [503, 'unavailable_error'],
  child_gone: [502, 'server_error'],
  child_timeout: [504, 'server_error'],
  shutting_down: [503, 'unavailable_error'],
  client_gone: [499, 'invalid_request_error'],
  key_invalid: [401, 'authentication_error'],
  request_malformed: [400, 'invalid_request_error'],
  expectation_unknown: [417, 'invalid_request_error'],
  not_found: [404, 'not_found_error'],
  internal: [500, 'server_error'],
};

const codes = Object.keys(wire) as ErrorCode[];

describe('the error catalogue', () => {
  it.each(codes)('%s has its status, its type and the native envelope', (code) => {
    const [status, type] = wire[code];
    const error = new RouterError(code, 'what happened');
    expect(error.status).toBe(status);
    // The order of the native envelope, then what is ours.
    expect(JSON.stringify(error)).toBe(
      `{"error":{"code":${status},"message":"what happened","type":"${type}","reason":"${code}"}}`,
    );
  });

  it('says when to ask again of all that another time may bring', () => {
    const telling = codes.filter((code) => 'Retry-After' in new RouterError(code, 'm').headers);
    const isForLater = new Set([429, 502, 503, 504, 507]);
    expect(telling).toEqual(codes.filter((code) => isForLater.has(wire[code][0])));
  });

  it('is listed above as a whole', () => {
    const source = readFileSync(new URL('../../src/errors.ts', import.meta.url), 'utf8');
    const catalogued = [...source.matchAll(/^ {2}(\w+): \{ status: /gm)].map(([, code]) => code);
    expect(catalogued).toEqual(codes);
  });
});

describe('a RouterError', () => {
  it('names the model and the last lines where they are known, behind the native fields', () => {
    const error = new RouterError('load_failed', 'm', { model: 'alpha', lastLines: ['one', 'two'] });
    expect(Object.entries(error.toJSON().error).slice(3)).toEqual([
      ['reason', 'load_failed'],
      ['model', 'alpha'],
      ['last_lines', ['one', 'two']],
    ]);
  });

  it('leaves out last lines of which there are none', () => {
    expect(new RouterError('load_failed', 'm', { lastLines: [] }).toJSON().error).not.toHaveProperty(
      'last_lines',
    );
  });

  it('keeps its cause to itself', () => {
    const cause = new Error('inner');
    const error = new RouterError('child_gone', 'm', { cause });
    expect(error.cause).toBe(cause);
    expect(JSON.stringify(error)).not.toContain('inner');
  });

  it('is an Error with a name and a message', () => {
    const error = new RouterError('internal', 'what happened');
    expect(error).toBeInstanceOf(Error);
    expect(String(error)).toBe('RouterError: what happened');
  });

  it.each([
    [0, { 'Retry-After': '1' }],
    [0.2, { 'Retry-After': '1' }],
    [1.2, { 'Retry-After': '2' }],
    [5, { 'Retry-After': '5' }],
  ])('with retryAfterS %s has the headers %o: whole seconds, at least one', (retryAfterS, headers) => {
    expect(new RouterError('queue_full', 'm', { retryAfterS }).headers).toEqual(headers);
  });
});

describe('asRouterError', () => {
  it('leaves an error of the catalogue as it is', () => {
    const error = new RouterError('not_found', 'm');
    expect(asRouterError(error)).toBe(error);
  });

  it.each([
    ['an Error', new TypeError('boom'), 'internal error: boom'],
    ['a text', 'boom', 'internal error: boom'],
    ['nothing', undefined, 'internal error: undefined'],
  ])('makes %s an internal error with its cause', (_what, thrown, message) => {
    const error = asRouterError(thrown);
    expect([error.code, error.status, error.message, error.cause]).toEqual([
      'internal',
      500,
      message,
      thrown,
    ]);
  });
});
