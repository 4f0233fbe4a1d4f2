import type { Server } from 'node:http';
import { pino } from 'pino';
import { ConnectionLimit } from '../../src/http/connection-limit.js';
import { RequestTracer } from '../../src/http/request-trace.js';
import { createServer, type HttpServerOptions } from '../../src/http/server.js';
import { Counters } from '../../src/observe/counters.js';

/** The server of a supervisor around an app of the test's, with room for everybody, without TLS and log. */
export function appServer(options: Pick<HttpServerOptions, 'app'> & Partial<HttpServerOptions>): Server {
  return createServer({
    tracer: new RequestTracer(pino({ level: 'silent' }), new Counters()),
    tls: undefined,
    connections: new ConnectionLimit({ max: Infinity, onFull: () => undefined }),
    isDraining: () => false,
    onAcceptError: () => undefined,
    onRefused: () => undefined,
    ...options,
  });
}
