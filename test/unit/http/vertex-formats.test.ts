import { describe, expect, it } from 'vitest';
import { proxiedPosts } from '../../../src/http/app.js';
import { requestFormats } from '../../../src/http/vertex-formats.js';

describe('@requestFormat', () => {
  const formats = requestFormats(proxiedPosts);

  it.each([
    ['chatCompletions', '/v1/chat/completions'],
    ['chatCompletionsControl', '/v1/chat/completions/control'],
    ['messagesCountTokens', '/v1/messages/count_tokens'],
    ['responsesInputTokens', '/v1/responses/input_tokens'],
    ['audioTranscriptions', '/v1/audio/transcriptions'],
    ['applyTemplate', '/apply-template'],
    ['completion', '/completion'],
    ['infill', '/infill'],
  ])('%s stands for %s', (name, path) => {
    expect(formats.get(name)).toBe(path);
  });

  it.each([
    ['completions', '/v1/completions'],
    ['embeddings', '/v1/embeddings'],
    ['rerank', '/v1/rerank'],
  ])('%s stands for %s, whichever path comes first', (name, path) => {
    expect(formats.get(name)).toBe(path);
    expect(requestFormats([...proxiedPosts].reverse()).get(name)).toBe(path);
  });

  it.each(['/completions', '/v1/completions', '/chat/completions', '/embedding'])(
    '%s is a path itself',
    (path) => {
      expect(formats.get(path)).toBe(path);
    },
  );

  it.each([
    '',
    '/',
    'v1/completions',
    'chat/completions',
    'ChatCompletions',
    '/health',
    'health',
    'models',
    'modelsLoad',
    '/models/unload',
    'tools',
    'corsProxy',
    'toString',
    '__proto__',
  ])('%j is none', (format) => {
    expect(formats.has(format)).toBe(false);
  });

  it.each(['props', '/props', 'loraAdapters', '/lora-adapters', 'slots', '/slots/:id_slot', '/slots/0'])(
    '%s is none: by that a server of one model means what it has under GET',
    (format) => {
      expect(formats.has(format)).toBe(false);
    },
  );
});
