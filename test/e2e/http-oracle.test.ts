import { beforeAll, describe, expect, it } from 'vitest';
import { counting, sayingItsName } from '../helpers/known-answer-models.js';
import { startPair, title, type OracleRequest, type Pair } from './http-oracle.js';

const chat = { messages: [{ role: 'user', content: 'Who are you?' }] };

describe('without a model, ours answers as the native router does', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models: { alpha: sayingItsName('alpha'), beta: counting(3) } });
  });

  const requests: OracleRequest[] = [
    { path: '/health' },
    { path: '/v1/health' },
    { path: '/props' },
    { path: '/models' },
    { path: '/v1/models' },
    { path: '/metrics' },
    { path: '/slots' },
    { path: '/lora-adapters' },
    { path: '/props?model=' },
    { path: '/props?model=nobody' },
    { path: '/metrics?model=nobody&autoload=false' },
    { path: '/props?model=alpha&autoload=false' },
    { path: '/v1/stream' },
    { method: 'POST', path: '/v1/streams/lookup', body: { conversation_ids: ['x'] } },
    { method: 'POST', path: '/v1/streams/lookup', body: '{' },
    { method: 'POST', path: '/v1/streams/lookup', body: {} },
    { method: 'DELETE', path: '/v1/stream?conv_id=unknown' },
    { method: 'DELETE', path: '/v1/stream' },
    { method: 'POST', path: '/props', body: {} },
    { method: 'POST', path: '/v1/chat/completions', body: chat },
    { method: 'POST', path: '/v1/chat/completions', body: { ...chat, model: 7 } },
    { method: 'POST', path: '/v1/chat/completions', body: { ...chat, model: '' } },
    { method: 'POST', path: '/v1/chat/completions?model=alpha', body: chat },
    { method: 'POST', path: '/v1/chat/completions', body: { ...chat, model: 'nobody' } },
    { method: 'POST', path: '/v1/chat/completions?autoload=false', body: { ...chat, model: 'alpha' } },
    { method: 'POST', path: '/v1/chat/completions?autoload=0', body: { ...chat, model: 'alpha' } },
    { method: 'POST', path: '/tokenize', body: ['alpha'] },
    { method: 'POST', path: '/models/unload', body: { model: 'alpha' } },
    { method: 'POST', path: '/models/unload', body: { model: 'nobody' } },
    { path: '/tools' },
    { method: 'POST', path: '/tools', body: {} },
    { path: '/cors-proxy?url=http://127.0.0.1:1/' },
    { path: '/nowhere' },
    { method: 'POST', path: '/nowhere', body: {} },
    { method: 'PUT', path: '/models', body: {} },
    { method: 'PATCH', path: '/health' },
    { path: '/api/tags' },
    { method: 'OPTIONS', path: '/v1/chat/completions', headers: { Origin: 'http://page.example' } },
    { method: 'OPTIONS', path: '/nowhere', headers: { Origin: 'http://page.example' } },
    { path: '/health', headers: { Origin: 'http://page.example' } },
    { path: '/nowhere', headers: { Origin: 'http://page.example' } },
  ];

  it.each(requests.map((request) => [title(request), request] as const))('%s', async (_title, request) => {
    await pair.expectSame(request);
  });
});

describe('of a model that is loaded, ours passes on what the native router does', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models: { alpha: sayingItsName('alpha') } });
    const { native, ours } = await pair.play({
      method: 'POST',
      path: '/models/load',
      body: { model: 'alpha' },
    });
    expect([native.status, ours.status]).toEqual([200, 200]);
    await pair.untilBoth('alpha', 'loaded');
  });

  const requests: OracleRequest[] = [
    { path: '/models' },
    { path: '/slots?model=alpha' },
    { path: '/lora-adapters?model=alpha' },
    { method: 'POST', path: '/v1/chat/completions', body: { ...chat, model: 'alpha' } },
    { method: 'POST', path: '/v1/chat/completions', body: { ...chat, model: 'alpha', stream: true } },
    { method: 'POST', path: '/completion', body: { prompt: 'x', model: 'alpha', n_predict: 2 } },
    { method: 'POST', path: '/tokenize', body: { content: 'I am', model: 'alpha' } },
    { method: 'POST', path: '/detokenize', body: { tokens: [5, 6], model: 'alpha' } },
    { method: 'POST', path: '/apply-template', body: { ...chat, model: 'alpha' } },
    { method: 'POST', path: '/v1/embeddings', body: { input: 'x', model: 'alpha' } },
    { method: 'POST', path: '/v1/chat/completions', body: { model: 'alpha' } },
    { method: 'POST', path: '/models/load', body: { model: 'alpha' } },
    {
      method: 'POST',
      path: '/v1/chat/completions',
      body: { ...chat, model: 'alpha', stream: true },
      headers: { Origin: 'http://page.example' },
    },
  ];

  it.each(requests.map((request) => [title(request), request] as const))('%s', async (_title, request) => {
    await pair.expectSame(request);
  });
});
