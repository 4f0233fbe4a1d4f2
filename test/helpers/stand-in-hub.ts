import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { atEndOfTest } from './cleanup.js';

/** What a client can ask the hub for: the branches of a repository, the files of a commit, the bytes of one file. */
export type HubRoute = 'refs' | 'tree' | 'resolve';

/** How a route of the hub goes wrong. */
export type HubFault =
  /** The hub's own error, in its JSON. */
  | { readonly kind: 'status'; readonly status: number }
  /** 200 with this text. */
  | { readonly kind: 'text'; readonly text: string }
  /** Takes the request and never answers. */
  | { readonly kind: 'hang' }
  /** Redirects to the same path elsewhere. */
  | { readonly kind: 'redirect'; readonly to: string }
  /** Sends the file's first bytes, then breaks the connection; HEAD is answered well. */
  | { readonly kind: 'cut'; readonly afterBytes: number }
  /** Sends a file piece by piece, with a pause before each; HEAD is answered well. */
  | { readonly kind: 'trickle'; readonly pieceBytes: number; readonly pauseMs: number };

export interface HubRequest {
  readonly method: string;
  /** With its query. */
  readonly url: string;
  readonly route: HubRoute | undefined;
  readonly headers: IncomingHttpHeaders;
}

/**
 * A Hugging Face hub on loopback, with what llama-server asks of one: `api/models/R/refs`,
 * `api/models/R/tree/COMMIT?recursive=true`, and `R/resolve/COMMIT/FILE` with HEAD, ETag and Range. No redirects to a
 * file store and no TLS.
 */
export interface StandInHub {
  /** For HF_ENDPOINT or MODEL_ENDPOINT, with a slash at the end. */
  readonly endpoint: string;
  /** Every request so far, oldest first. */
  readonly requests: readonly HubRequest[];
  /**
   * Puts a repository in place of what it was before, as the new head of its branch.
   *
   * @param repo `user/name`
   * @param files contents by path; what ends in `.gguf` is kept as a large file, under its SHA-256
   * @returns the commit, which depends on the files alone
   */
  publish(repo: string, files: Readonly<Record<string, string | Buffer>>, options?: PublishOptions): string;
  /** From now on every request of this route goes wrong like this; undefined mends it. */
  fault(route: HubRoute, fault: HubFault | undefined): void;
  /** Stops listening and breaks all connections: what a machine without network sees, but quicker. */
  close(): Promise<void>;
}

export interface PublishOptions {
  /** Default: `main`. */
  readonly branch?: string;
  /** Without `Authorization: Bearer TOKEN` the hub denies (401) that there is such a repository. */
  readonly token?: string;
}

interface StoredFile {
  readonly content: Buffer;
  readonly oid: string;
  readonly isLarge: boolean;
}

interface Repository {
  readonly branch: string;
  readonly token: string | undefined;
  readonly commit: string;
  /** All that were ever published: a commit once named stays to be had. */
  readonly commits: ReadonlyMap<string, ReadonlyMap<string, StoredFile>>;
}

/** What a client wants to know, of the parts that its route has. */
interface Question {
  readonly route: HubRoute;
  readonly repo: string;
  readonly commit?: string | undefined;
  readonly path?: string;
}

/** A hub that listens until the end of the test. It starts empty and well. */
export async function startStandInHub(): Promise<StandInHub> {
  const repositories = new Map<string, Repository>();
  const faults = new Map<HubRoute, HubFault>();
  const requests: HubRequest[] = [];
  const closing = new AbortController();

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { method = '', url = '', headers } = request;
    const question = questionOf(url);
    requests.push({ method, url, route: question?.route, headers });
    const fault = question && faults.get(question.route);
    const repository = repositories.get(question?.repo ?? '');
    const isDenied =
      repository?.token !== undefined && headers.authorization !== `Bearer ${repository.token}`;
    const files = repository?.commits.get(question?.commit ?? '');
    const file = files?.get(question?.path ?? '');

    if (fault?.kind === 'hang') {
      return;
    } else if (fault?.kind === 'status') {
      sendError(response, fault.status, `Told to answer ${fault.status}`);
    } else if (fault?.kind === 'text') {
      response.end(fault.text);
    } else if (fault?.kind === 'redirect') {
      response.writeHead(307, { location: new URL(url, fault.to).href }).end();
    } else if (isDenied) {
      // The hub does not tell strangers which private repositories there are.
      sendError(response, 401, 'Invalid username or password.');
    } else if (question?.route === 'refs' && repository) {
      sendJson(response, refsOf(repository));
    } else if (question?.route === 'tree' && files) {
      sendJson(response, treeOf(files));
    } else if (question?.route === 'resolve' && file) {
      await sendFile(request, response, file, fault, closing.signal);
    } else {
      sendError(response, 404, repository ? 'Entry not found' : 'Repository not found');
    }
  };

  const server = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  const close = async (): Promise<void> => {
    closing.abort();
    if (!server.listening) return;
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  };
  atEndOfTest(close);

  return {
    endpoint: `http://127.0.0.1:${port}/`,
    requests,
    publish: (repo, files, { branch = 'main', token } = {}) => {
      const stored = new Map(
        Object.entries(files).map(([path, content]) => [path, storedFile(path, Buffer.from(content))]),
      );
      const names = [...stored].map(([path, { oid }]) => `${path} ${oid}`).sort();
      const commit = createHash('sha1')
        .update([repo, ...names].join('\n'))
        .digest('hex');
      const commits = new Map([...(repositories.get(repo)?.commits ?? []), [commit, stored]]);
      repositories.set(repo, { branch, token, commit, commits });
      return commit;
    },
    fault: (route, fault) => {
      if (fault === undefined) faults.delete(route);
      else faults.set(route, fault);
    },
    close,
  };
}

function questionOf(url: string): Question | undefined {
  const { pathname } = new URL(url, 'http://hub');
  const [, listed = '', refs, commit] =
    /^\/api\/models\/([^/]+\/[^/]+)\/(?:(refs)|tree\/([^/]+))$/.exec(pathname) ?? [];
  if (refs !== undefined) return { route: 'refs', repo: listed };
  if (commit !== undefined) return { route: 'tree', repo: listed, commit };
  const file = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(pathname);
  if (!file) return undefined;
  const [, repo = '', revision, path = ''] = file;
  return { route: 'resolve', repo, commit: revision, path: decodeURIComponent(path) };
}

/** Small files are known by git's hash of them, large ones by that of their bytes. */
function storedFile(path: string, content: Buffer): StoredFile {
  const isLarge = path.endsWith('.gguf');
  const hash = isLarge ? createHash('sha256') : createHash('sha1').update(`blob ${content.byteLength}\0`);
  return { content, isLarge, oid: hash.update(content).digest('hex') };
}

function refsOf({ branch, commit }: Repository): unknown {
  const head = { name: branch, ref: `refs/heads/${branch}`, targetCommit: commit };
  return { tags: [], branches: [head], converts: [] };
}

function treeOf(files: ReadonlyMap<string, StoredFile>): unknown {
  const directories = new Set(
    [...files.keys()].flatMap((path) => {
      const parts = path.split('/').slice(0, -1);
      return parts.map((_, at) => parts.slice(0, at + 1).join('/'));
    }),
  );
  return [
    ...[...directories].map((path) => ({ type: 'directory', oid: '0'.repeat(40), size: 0, path })),
    ...[...files].map(([path, { content, oid, isLarge }]) => {
      const size = content.byteLength;
      if (!isLarge) return { type: 'file', oid, size, path };
      const pointer = createHash('sha1').update(oid).digest('hex');
      return { type: 'file', oid: pointer, size, lfs: { oid, size, pointerSize: 135 }, path };
    }),
  ];
}

async function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  { content, oid }: StoredFile,
  fault: HubFault | undefined,
  closing: AbortSignal,
): Promise<void> {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  const total = content.byteLength;
  response.setHeader('etag', `"${oid}"`);
  response.setHeader('accept-ranges', 'bytes');
  if (start > 0 && start >= total) {
    response.writeHead(416, { 'content-range': `bytes */${total}` }).end();
    return;
  }
  if (start > 0) response.setHeader('content-range', `bytes ${start}-${total - 1}/${total}`);
  response.writeHead(start > 0 ? 206 : 200, { 'content-length': total - start });
  const body = content.subarray(start);
  if (request.method === 'HEAD') {
    response.end();
  } else if (fault?.kind === 'cut') {
    response.write(body.subarray(0, fault.afterBytes), () => response.destroy());
  } else if (fault?.kind === 'trickle') {
    const left = new AbortController();
    response.once('close', () => left.abort());
    const signal = AbortSignal.any([closing, left.signal]);
    for (let at = 0; at < body.byteLength; at += fault.pieceBytes) {
      await delay(fault.pauseMs, undefined, { signal });
      response.write(body.subarray(at, at + fault.pieceBytes));
    }
    response.end();
  } else {
    response.end(body);
  }
}

function sendJson(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(value));
}

function sendError(response: ServerResponse, status: number, error: string): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' });
  response.end(JSON.stringify({ error }));
}
