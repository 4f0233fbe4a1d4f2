import { CommandLineError } from './command-line.js';
import { integer, type Kind } from './setting-kinds.js';

/** Where Vertex AI finds what it needs of a container that serves predictions. */
export interface VertexSettings {
  /** Answered as `/health` is, which stays; undefined = `/health` is the only one. */
  readonly healthRoute: string | undefined;
  readonly predictRoute: string;
  /** Takes the place of `--port`; 0 = any free port. */
  readonly port: number;
}

/** Letters, digits and what else a router cannot take for a pattern; Vertex's own look like `/v1/models/1:predict`. */
const routeForm = /^\/$|^(?:\/[\w.~@-][\w.~@:-]*)+$/;

/** A path, whose first slash may be left out; undefined for the empty text. */
const route: Kind<string | undefined> = {
  placeholder: 'PATH',
  read(given) {
    if (given === '') return undefined;
    const path = given.startsWith('/') ? given : `/${given}`;
    if (routeForm.test(path)) return path;
    throw new Error(`expected a path of plain names such as /v1/models/1:predict, not '${given}'`);
  },
};

const port = integer({ min: 0, max: 65535, note: '0 = any free port' });

/**
 * What the environment that Vertex AI gives its containers says, with llama-server's defaults; undefined outside of
 * it, whatever else is set there.
 *
 * @throws CommandLineError with a line for each variable that cannot be read
 * @see https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#aip-variables
 */
export function readVertexSettings(env: NodeJS.ProcessEnv): VertexSettings | undefined {
  if (env['AIP_MODE'] !== 'PREDICTION') return undefined;
  const problems: string[] = [];
  const read = <T>(name: string, kind: Kind<T>, initial: string): T => {
    try {
      return kind.read(env[name] || initial);
    } catch (error) {
      problems.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
      return kind.read(initial);
    }
  };
  const settings = {
    healthRoute: read('AIP_HEALTH_ROUTE', route, ''),
    predictRoute: read('AIP_PREDICT_ROUTE', route, '/predict') ?? '/predict',
    port: read('AIP_HTTP_PORT', port, '8080'),
  };
  if (problems.length > 0) throw new CommandLineError(problems);
  return settings;
}
