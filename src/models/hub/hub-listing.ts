import { Agent, fetch, type RequestInit, type Response } from 'undici';

/** What the hub says of a repository. */
export type HubListing = ListedRepo | NoAnswer;

export interface ListedRepo {
  readonly kind: 'listed';
  /** The head of `main`, or else of the first branch. */
  readonly commit: string;
  /** The files of that commit, in the hub's order. */
  readonly files: readonly ListedFile[];
}

export interface ListedFile {
  /** With `/`. */
  readonly path: string;
  /** The hash by which the hub and its caches name the content; undefined if it is not told. */
  readonly oid: string | undefined;
  /** Undefined if it is not told. */
  readonly sizeBytes: number | undefined;
}

/** What was asked for is not to be had, for this reason. */
export interface NoAnswer {
  readonly kind: 'unknown';
  /** Whether the hub says that there is none, or denies it, or says nothing of use. */
  readonly why: 'not_found' | 'refused' | 'unreachable';
  readonly reason: string;
}

export interface HubQuestion {
  /** `user/repo`. */
  readonly repo: string;
  /** Says where the hub is. */
  readonly env: NodeJS.ProcessEnv;
  readonly token: string | undefined;
  /** The User-Agent of the binary on whose behalf the hub is asked. */
  readonly userAgent: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

const DEFAULT_ENDPOINT = 'https://huggingface.co/';
const COMMIT = /^[0-9a-fA-F]{40}$/;
/** What does not look like this, llama-server does not send (common/hf-cache.cpp, `is_valid_hf_token`). */
const TOKEN = /^hf_[A-Za-z0-9]{34,253}$/;
const UNSENT_TOKEN = ': the token was not sent, because it has not the form of one (hf_…)';
const WHY_BY_STATUS: ReadonlyMap<number, NoAnswer['why']> = new Map([
  [401, 'refused'],
  [403, 'refused'],
  [404, 'not_found'],
]);
/** The hub gives at most a thousand entries of some hundred bytes. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** Why there is no answer, in words for the user. */
class NoAnswerError extends Error {
  readonly why: NoAnswer['why'];

  constructor(why: NoAnswer['why'], message: string) {
    super(message);
    this.why = why;
  }
}

/** One conversation with the hub. */
interface Hub {
  /** How it is called in messages. */
  readonly host: string;
  /**
   * Throws NoAnswerError for any status but 200, or one that leads elsewhere when redirects are not followed.
   *
   * @param hint what a status means here, to be said after it
   */
  readonly request: (path: string, hint: (status: number) => string, init?: RequestInit) => Promise<Response>;
}

/**
 * Asks the hub which files a repository has, by the requests of llama-server (common/hf-cache.cpp,
 * `get_repo_files`), so that both see the same. No message holds the token or a password of the endpoint.
 *
 * @throws only the signal's reason
 */
export async function listHubRepo(question: HubQuestion): Promise<HubListing> {
  const { repo } = question;
  return await askHub(question, async ({ host, request }): Promise<ListedRepo> => {
    const ask = async (path: string): Promise<unknown> => {
      const response = await request(path, (status) => aboutRepo(status, question));
      return jsonIn(await response.text(), host);
    };
    const commit = headOf(await ask(`api/models/${repo}/refs`));
    if (commit === undefined) {
      throw new NoAnswerError('unreachable', `${host} names no branch of '${repo}'`);
    }
    const tree = await ask(`api/models/${repo}/tree/${commit}?recursive=true`);
    if (!Array.isArray(tree)) {
      throw new NoAnswerError('unreachable', `${host} answered something else than a list of files`);
    }
    return { kind: 'listed', commit, files: tree.flatMap(fileOf) };
  });
}

/**
 * Asks whether the hub gives a file that it lists: what a gated repository holds everybody may see, but not have.
 *
 * @returns why it does not; undefined if it does
 * @throws only the signal's reason
 */
export async function vetHubFile(
  question: HubQuestion,
  { commit, path }: { readonly commit: string; readonly path: string },
): Promise<NoAnswer | undefined> {
  const place = `${question.repo}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`;
  return await askHub(question, async ({ request }) => {
    // The hub leads to a store of files, which is asked by whoever wants the bytes.
    await request(place, (status) => aboutFile(status, path, question), {
      method: 'HEAD',
      redirect: 'manual',
    });
    return undefined;
  });
}

async function askHub<T>(question: HubQuestion, ask: (hub: Hub) => Promise<T>): Promise<T | NoAnswer> {
  const { signal, timeoutMs } = question;
  const timeout = AbortSignal.timeout(timeoutMs);
  const { url, host, headers } = requestsOf(question);
  const agent = new Agent({ maxResponseSize: MAX_ANSWER_BYTES });
  const request: Hub['request'] = async (path, hint, init) => {
    const race = AbortSignal.any([signal, timeout]);
    const response = await fetch(url + path, { ...init, headers, dispatcher: agent, signal: race });
    const { status } = response;
    if (status === 200 || (init?.redirect === 'manual' && status >= 300 && status < 400)) return response;
    throw new NoAnswerError(
      WHY_BY_STATUS.get(status) ?? 'unreachable',
      `${host} answered ${status}${hint(status)}`,
    );
  };
  try {
    return await ask({ host, request });
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof NoAnswerError) return { kind: 'unknown', why: error.why, reason: error.message };
    const late = `${host} did not answer within ${timeoutMs / 1000} s`;
    const reason = timeout.aborted ? late : `${host} cannot be reached: ${causeOf(error)}`;
    return { kind: 'unknown', why: 'unreachable', reason };
  } finally {
    await agent.destroy();
  }
}

/** Where the requests go, what the place is called in messages, and what is sent along. */
function requestsOf({ env, token = '', userAgent }: HubQuestion) {
  const endpoint = [env['MODEL_ENDPOINT'], env['HF_ENDPOINT']].find(Boolean) ?? DEFAULT_ENDPOINT;
  const { scheme, login, place } = partsOf(endpoint);
  const headers: Record<string, string> = {
    'user-agent': userAgent,
    accept: 'application/json',
    // Else the bound on an answer would be one on its compressed form.
    'accept-encoding': 'identity',
  };
  // fetch() refuses a URL with a password in it; of a password and a token, llama-server sends the token.
  if (login !== undefined) headers['authorization'] = `Basic ${Buffer.from(login).toString('base64')}`;
  if (TOKEN.test(token)) headers['authorization'] = `Bearer ${token}`;
  return { url: `${scheme}${place.replace(/\/?$/, '/')}`, host: place.replace(/\/.*$/s, ''), headers };
}

/** As llama-server takes it apart (common/http.h): what stands before the first `@` is user and password. */
function partsOf(endpoint: string) {
  const [, scheme = '', login, place = ''] = /^(https?:\/\/)?(?:([^@]*)@)?(.*)$/s.exec(endpoint) ?? [];
  return { scheme, login, place };
}

function jsonIn(text: string, host: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new NoAnswerError('unreachable', `${host} answered something else than JSON`);
  }
}

/** fetch() says no more than that it failed; the system's code is in its cause. */
function causeOf(error: unknown): string {
  const { cause = error } = error as Error;
  const { code, message } = cause as NodeJS.ErrnoException;
  if (code === 'ERR_INVALID_URL') return 'MODEL_ENDPOINT or HF_ENDPOINT is no http:// or https:// URL';
  return code ?? message;
}

function aboutRepo(status: number, { repo, token = '' }: HubQuestion): string {
  if (status === 404) return `: it has no repository '${repo}'`;
  if (status !== 401 && status !== 403) return '';
  if (token === '') return `: '${repo}' does not exist, or needs a token (--hf-token or HF_TOKEN)`;
  if (TOKEN.test(token)) return `: '${repo}' does not exist, or the token is not good for it`;
  return UNSENT_TOKEN;
}

function aboutFile(status: number, path: string, { repo, token = '' }: HubQuestion): string {
  if (status === 404) return `: it lists '${path}' of '${repo}' but does not have it`;
  if (status !== 401 && status !== 403) return '';
  if (token === '') return `: the files of '${repo}' need a token (--hf-token or HF_TOKEN)`;
  if (TOKEN.test(token))
    return `: the token is not good for the files of '${repo}'; ask for access on its page`;
  return UNSENT_TOKEN;
}

function headOf(refs: unknown): string | undefined {
  const branches = isRecord(refs) && Array.isArray(refs['branches']) ? refs['branches'] : [];
  const heads = branches.flatMap((branch: unknown) => {
    if (!isRecord(branch)) return [];
    const { name, targetCommit } = branch;
    return typeof name === 'string' && typeof targetCommit === 'string' && COMMIT.test(targetCommit)
      ? [{ name, targetCommit }]
      : [];
  });
  return (heads.find(({ name }) => name === 'main') ?? heads[0])?.targetCommit;
}

/** Of a large file the tree holds a pointer, and names the content under `lfs`. */
function fileOf(entry: unknown): ListedFile[] {
  if (!isRecord(entry) || entry['type'] !== 'file' || typeof entry['path'] !== 'string') return [];
  const { oid } = isRecord(entry['lfs']) ? entry['lfs'] : entry;
  const { path, size } = entry;
  return [
    {
      path,
      oid: typeof oid === 'string' && oid !== '' ? oid : undefined,
      sizeBytes: Number.isSafeInteger(size) ? (size as number) : undefined,
    },
  ];
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
