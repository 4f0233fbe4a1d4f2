import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import type { Dispatcher } from 'undici';
import { expect, it, vi } from 'vitest';
import { Relay } from '../../../src/http/relay.js';

it('an answer that was cut before the child could be reached is not asked for after all', () => {
  const outgoing = new ServerResponse(new IncomingMessage(new Socket()));
  const relay = new Relay(outgoing, { detachedUntil: undefined, slowReaderMs: 0, onFirstByte: vi.fn() });
  const abort = vi.fn<(reason: Error) => void>();
  const controller = { abort } as unknown as Dispatcher.DispatchController;
  const stopped = new Error('it was stopped');
  relay.cut(stopped);
  expect(abort).not.toHaveBeenCalled();
  relay.onRequestStart(controller);
  expect(abort.mock.calls).toEqual([[stopped]]);
});
