import { describe, expect, it } from 'vitest';
import { CommandLineError } from '../../../src/config/command-line.js';
import { readVertexSettings } from '../../../src/config/vertex-settings.js';

const AIP_MODE = 'PREDICTION';

function problemsOf(env: NodeJS.ProcessEnv): readonly string[] {
  try {
    readVertexSettings(env);
  } catch (error) {
    if (error instanceof CommandLineError) return error.problems;
    throw error;
  }
  throw new Error('it was read');
}

describe('the environment of Vertex AI', () => {
  it.each([{}, { AIP_MODE: '' }, { AIP_MODE: 'prediction' }, { AIP_MODE: 'TRAINING' }])(
    'counts for nothing when its mode is another one: %j',
    (mode) => {
      const rest = { AIP_HTTP_PORT: 'abc', AIP_PREDICT_ROUTE: 'a b', AIP_HEALTH_ROUTE: '*' };
      expect(readVertexSettings({ ...rest, ...mode })).toBeUndefined();
    },
  );

  it.each([{ AIP_MODE }, { AIP_MODE, AIP_HTTP_PORT: '', AIP_PREDICT_ROUTE: '', AIP_HEALTH_ROUTE: '' }])(
    'has the defaults of llama-server where a variable is absent or empty',
    (env) => {
      const defaults = { healthRoute: undefined, predictRoute: '/predict', port: 8080 };
      expect(readVertexSettings(env)).toEqual(defaults);
    },
  );

  it('is read as Vertex AI sets it', () => {
    const base = '/v1/endpoints/12/deployedModels/34';
    const env = {
      AIP_MODE,
      AIP_HTTP_PORT: '7080',
      AIP_HEALTH_ROUTE: base,
      AIP_PREDICT_ROUTE: `${base}:predict`,
    };
    expect(readVertexSettings(env)).toEqual({
      healthRoute: base,
      predictRoute: `${base}:predict`,
      port: 7080,
    });
  });

  it('may leave out the first slash of a route', () => {
    const env = { AIP_MODE, AIP_HEALTH_ROUTE: 'ping', AIP_PREDICT_ROUTE: 'invoke/it' };
    expect(readVertexSettings(env)).toMatchObject({ healthRoute: '/ping', predictRoute: '/invoke/it' });
  });

  it.each(['abc', '-1', '65536', '80x', ' 80', '8e3'])('refuses the port %j', (AIP_HTTP_PORT) => {
    expect(problemsOf({ AIP_MODE, AIP_HTTP_PORT })).toEqual([
      `AIP_HTTP_PORT: expected a whole number from 0 to 65535 (0 = any free port), not '${AIP_HTTP_PORT}'`,
    ]);
  });

  it.each(['/a b', '/*', '/:id', '/a/:id', '/a?x=1', '/a#b', '/a/', '//a', '/a//b', '/a%20b', '/{a}', '/a?'])(
    'refuses the route %j, which would be a pattern or match no request',
    (route) => {
      expect(problemsOf({ AIP_MODE, AIP_PREDICT_ROUTE: route, AIP_HEALTH_ROUTE: route })).toEqual([
        `AIP_HEALTH_ROUTE: expected a path of plain names such as /v1/models/1:predict, not '${route}'`,
        `AIP_PREDICT_ROUTE: expected a path of plain names such as /v1/models/1:predict, not '${route}'`,
      ]);
    },
  );
});
