import fc from 'fast-check';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  CommandLineError,
  NOT_INHERITED_KEYS,
  parseCommandLine,
  scanForBinary,
  type CommandLine,
} from '../../../src/config/command-line.js';
import { readKeyFile } from '../../../src/config/key-file.js';
import { OptionTable, type Option, type OptionValues } from '../../../src/config/option-table.js';
import { renderArgs } from '../../../src/config/render-options.js';
import { scanArguments } from '../../../src/config/scan-arguments.js';
import type { Settings } from '../../../src/config/settings.js';
import { StartOptions } from '../../../src/config/start-options.js';
import { recordedTable as table } from './recorded-help.js';

function parse(line: string, env: NodeJS.ProcessEnv = {}): CommandLine {
  return parseCommandLine(line === '' ? [] : line.split(' '), table, env);
}

function problemsOf(args: readonly string[], env: NodeJS.ProcessEnv = {}): readonly string[] {
  try {
    parseCommandLine(args, table, env);
    return [];
  } catch (error) {
    if (error instanceof CommandLineError) return error.problems;
    throw error;
  }
}

function byKey(values: OptionValues): Record<string, string> {
  return Object.fromEntries([...values].map(([{ key }, text]) => [key, text]));
}

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'command-line-'));
});
afterAll(() => {
  rmSync(directory, { recursive: true });
});

function fileOf(content: string): string {
  const path = join(directory, `keys-${content.length}`);
  writeFileSync(path, content);
  return path;
}

describe('settings', () => {
  it('without arguments are the documented defaults', () => {
    expect(parse('').settings).toEqual({
      hosts: ['127.0.0.1'],
      port: 8080,
      reusePort: false,
      modelsDir: undefined,
      modelsPreset: undefined,
      modelsMax: 4,
      modelsAutoload: true,
      timeoutMs: 3_600_000,
      apiKeys: [],
      fixedApiKeys: [],
      apiKeyFile: undefined,
      sslKeyFile: undefined,
      sslCertFile: undefined,
      apiPrefix: '',
      corsOrigins: undefined,
      corsMethods: 'GET, POST, DELETE, OPTIONS',
      corsHeaders: '*',
      corsCredentials: true,
      ui: true,
      staticPath: undefined,
      uiConfig: undefined,
      uiConfigFile: undefined,
      uiMcpProxy: false,
      tools: undefined,
      mcpServersConfig: undefined,
      mcpServersJson: undefined,
      agent: false,
      offline: false,
      hfToken: undefined,
      defaultModel: undefined,
      llamaServer: undefined,
      demo: false,
      queueMax: 1024,
      inFlightMax: 56,
      queueTimeoutMs: 600_000,
      loadTimeoutMs: 600_000,
      hangTimeoutMs: 600_000,
      fairAfterMs: 30_000,
      drainTimeoutMs: 60_000,
      streamPingAfterMs: 15_000,
      streamPingIntervalMs: 10_000,
      bodyMaxBytes: 104_857_600,
      bodyMemoryMaxBytes: 1_073_741_824,
      logLevel: 'info',
      logFormat: 'auto',
      watch: true,
      watchPolling: false,
      allowedHosts: [],
      connectionsMax: 0,
      restore: false,
    } satisfies Settings);
  });

  it.each<[string, Partial<Settings>]>([
    ['--host 0.0.0.0 --port 0', { hosts: ['0.0.0.0'], port: 0 }],
    ['--host 127.0.0.1,::1,/run/llama.sock', { hosts: ['127.0.0.1', '::1', '/run/llama.sock'] }],
    ['--no-ui --path ./site', { ui: false, staticPath: './site' }],
    ['--no-webui', { ui: false }],
    ['--cors-origins localhost --no-cors-credentials', { corsOrigins: 'localhost', corsCredentials: false }],
    ['--reuse-port --offline --default-model auto', { reusePort: true, offline: true, defaultModel: 'auto' }],
    ['--mcp-servers-config mcp.json', { mcpServersConfig: 'mcp.json' }],
    ['--models_dir ./models --models-preset=p.ini', { modelsDir: './models', modelsPreset: 'p.ini' }],
    ['--models-max 0', { modelsMax: 0 }],
    ['--no-models-autoload', { modelsAutoload: false }],
    ['--models-autoload=off', { modelsAutoload: false }],
    ['--no-models-autoload=off', { modelsAutoload: true }],
    ['-to 1', { timeoutMs: 1000 }],
    ['--timeout 0', { timeoutMs: 0 }],
    ['--timeout -1', { timeoutMs: 0 }],
    ['--timeout 99999999', { timeoutMs: 2_147_483_647 }],
    ['--ssl-key-file k --ssl-cert-file c', { sslKeyFile: 'k', sslCertFile: 'c' }],
    ['--api-prefix /a/b', { apiPrefix: '/a/b' }],
    ['--llama-server /opt/llama-server --demo', { llamaServer: '/opt/llama-server', demo: true }],
    ['--demo --no-demo', { demo: false }],
    [
      '--queue-max 1 --queue-timeout 0.5 --in-flight-max 0',
      { queueMax: 1, queueTimeoutMs: 500, inFlightMax: 0 },
    ],
    ['--allowed-hosts gpu-box,gpu-box.lan:8080', { allowedHosts: ['gpu-box', 'gpu-box.lan:8080'] }],
    ['--connections-max 500 --restore', { connectionsMax: 500, restore: true }],
    ['--load-timeout 1.25 --hang-timeout 0', { loadTimeoutMs: 1250, hangTimeoutMs: 0 }],
    ['--fair-after 0', { fairAfterMs: 0 }],
    ['--drain-timeout=2', { drainTimeoutMs: 2000 }],
    ['--stream-ping-after 0 --stream-ping-interval 2', { streamPingAfterMs: 0, streamPingIntervalMs: 2000 }],
    ['--body-max 1000', { bodyMaxBytes: 1000 }],
    ['--body-max 1.5K --body-memory-max 2GiB', { bodyMaxBytes: 1536, bodyMemoryMaxBytes: 2 * 1024 ** 3 }],
    ['--log-level debug --log-format json', { logLevel: 'debug', logFormat: 'json' }],
  ])('are read from %s', (line, expected) => {
    expect(parse(line).settings).toMatchObject(expected);
  });

  it('come from the environment where the command line is silent', () => {
    const env = {
      LLAMA_ARG_PORT: '9000',
      LLAMA_ARG_MODELS_MAX: '2',
      LLAMA_SUPERVISOR_QUEUE_MAX: '7',
      LLAMA_SUPERVISOR_DEMO: 'true',
      LLAMA_SERVER_BIN: '/opt/llama-server',
    };
    expect(parse('--models-max 3', env).settings).toMatchObject({
      port: 9000,
      modelsMax: 3,
      queueMax: 7,
      demo: true,
      llamaServer: '/opt/llama-server',
    });
  });

  it('are off by the presence of LLAMA_ARG_NO_, whatever it holds, unless the command line says otherwise', () => {
    const env = { LLAMA_ARG_NO_MODELS_AUTOLOAD: '', LLAMA_ARG_MODELS_AUTOLOAD: '1' };
    expect(parse('', env).settings.modelsAutoload).toBe(false);
    expect(parse('--models-autoload', env).settings.modelsAutoload).toBe(true);
  });

  it('take an empty variable as unset', () => {
    const env = { LLAMA_ARG_PORT: '', LLAMA_API_KEY: '', LLAMA_SUPERVISOR_LOG_LEVEL: '' };
    expect(parse('', env).settings).toMatchObject({ port: 8080, apiKeys: [], logLevel: 'info' });
  });

  it('are obeyed although the installed binary does not list them, and are not passed on to it', () => {
    const old = OptionTable.parse('-m, --model FNAME   path\n--host HOST   address\n--port PORT   port\n');
    const { settings, childOptions, nativeArgs } = parseCommandLine(
      ['--models-dir', 'd', '--no-models-autoload', '--timeout', '5', '--api-key', 'k'],
      old,
      { LLAMA_ARG_MODELS_MAX: '1' },
    );
    expect(settings).toMatchObject({
      modelsDir: 'd',
      modelsAutoload: false,
      timeoutMs: 5000,
      apiKeys: ['k'],
      modelsMax: 1,
    });
    expect([...childOptions]).toEqual([]);
    expect(nativeArgs).toEqual([]);
  });
});

describe('API keys', () => {
  it('add up over repeated options and files, once each', () => {
    const file = fileOf('# ours\nthree\r\n\n  four\n#five\none\n');
    const { settings, warnings } = parse(`--api-key one,two --api-key six --api-key-file ${file}`);
    expect(settings.apiKeys).toEqual(['one', 'two', 'six', 'three', 'four']);
    expect(warnings).toEqual([]);
  });

  it('that do not come from the last key file are told apart, so that this file can be read again', () => {
    const [first, last] = [fileOf('first\n'), fileOf('shared\nof the last\n')];
    const { settings } = parse(`--api-key shared --api-key-file ${first} --api-key-file ${last}`);
    expect(settings).toMatchObject({
      apiKeys: ['shared', 'first', 'of the last'],
      fixedApiKeys: ['shared', 'first'],
      apiKeyFile: last,
    });
    expect(readKeyFile(last)).toEqual(['shared', 'of the last']);
  });

  it('may hold commas and quotes in quotes', () => {
    const { settings } = parseCommandLine(['--api-key', '"a,b",,"say ""x""",c"d'], table, {});
    expect(settings.apiKeys).toEqual(['a,b', 'say "x"', 'c"d']);
  });

  it('of the command line replace those of the environment', () => {
    expect(parse('--api-key new', { LLAMA_API_KEY: 'old' }).settings.apiKeys).toEqual(['new']);
    expect(parse('', { LLAMA_API_KEY: 'a,b' }).settings.apiKeys).toEqual(['a', 'b']);
  });

  it('never silently vanish', () => {
    const empty = fileOf('# none yet\n');
    expect(problemsOf(['--api-key-file', ''])).toEqual([expect.stringContaining('cannot read the key file')]);
    expect(problemsOf(['--api-key', ''])).toEqual([expect.stringMatching(/^--api-key: holds no key/)]);
    expect(problemsOf(['--api-key-file', empty])).toEqual([expect.stringContaining(`${empty} holds no key`)]);
    expect(problemsOf([], { LLAMA_ARG_API_KEY_FILE: join(directory, 'gone') })).toEqual([
      expect.stringMatching(/^LLAMA_ARG_API_KEY_FILE: cannot read the key file '.*gone'/),
    ]);
  });
});

describe('what is wrong', () => {
  it.each<[string, RegExp]>([
    ['--ctx-sise 1', /^unknown option --ctx-sise: did you mean --ctx-size\?$/],
    ['--queu-max 1', /^unknown option --queu-max: did you mean --queue-max\?$/],
    ['--xyzzyx', /^unknown option --xyzzyx: .*--help/],
    ['-c=512', /^unknown option -c=512/],
    ['models', /^unexpected argument 'models'/],
    ['-c', /^-c needs a value/],
    ['--control-vector-layer-range 1', /^--control-vector-layer-range needs two values/],
    ['--queue-max', /^--queue-max needs a value/],
    ['--slots=maybe', /^--slots is a switch.*'=maybe'/],
    ['--port 65536', /^--port: expected a whole number from 0 to 65535.*'65536'/],
    ['--port 80a', /^--port: .*'80a'/],
    ['--models-max -1', /^--models-max: .*0 = unlimited.*'-1'/],
    ['--timeout 1.5', /^--timeout: .*'1\.5'/],
    ['--queue-timeout 0', /^--queue-timeout: .*more than 0/],
    ['--load-timeout 9999999', /^--load-timeout: .*at most 2147483/],
    ['--fair-after -1', /^--fair-after: expected seconds/],
    ['--body-max 0', /^--body-max: expected bytes/],
    ['--body-max 5TB', /^--body-max: expected bytes/],
    ['--body-max 2G', /^--body-memory-max .* is less than --body-max/],
    ['--log-level loud', /^--log-level: expected one of trace, .*'loud'/],
    ['--ssl-key-file k', /^--ssl-key-file is given without --ssl-cert-file/],
    ['--ssl-cert-file c', /^--ssl-cert-file is given without --ssl-key-file/],
    ['--api-prefix llama', /^--api-prefix: .*leading/],
    ['--api-prefix /llama/', /^--api-prefix: .*trailing/],
  ])('is said of %s', (line, expected) => {
    expect(problemsOf(line.split(' '))).toEqual([expect.stringMatching(expected)]);
  });

  it('is named by the variable that holds it', () => {
    expect(
      problemsOf([], {
        LLAMA_ARG_PORT: 'http',
        LLAMA_ARG_MODELS_AUTOLOAD: 'yes',
        LLAMA_SUPERVISOR_QUEUE_MAX: '-3',
      }),
    ).toEqual([
      expect.stringMatching(/^LLAMA_ARG_PORT: /),
      expect.stringMatching(/^LLAMA_ARG_MODELS_AUTOLOAD: expected on, /),
      expect.stringMatching(/^LLAMA_SUPERVISOR_QUEUE_MAX: /),
    ]);
  });

  it('is all said at once, an unknown option and its value as one', () => {
    const args = ['--bogus-thing', '5', '--port', 'x', '--queue-max', 'y', 'stray', '-c'];
    const problems = problemsOf(args);
    expect(problems.map((line) => line.split(':')[0])).toEqual([
      'unknown option --bogus-thing',
      "unexpected argument 'stray'",
      '-c needs a value after it',
      '--port',
      '--queue-max',
    ]);
    expect(() => parseCommandLine(args, table, {})).toThrow(problems.join('\n'));
  });
});

describe('options of the models', () => {
  it('are those of the binary, from the command line only, without what is the router’s own', () => {
    const { childOptions } = parse(
      '--models-dir d --models-max 2 --no-models-autoload --host h --port 1 --api-key k --ssl-key-file a ' +
        '--ssl-cert-file b --log-file l --alias x --mmproj m --demo --queue-max 3 -c 8192 -ngl -1 --no-slots ' +
        '--metrics --api-prefix /p -to 9 --control-vector-layer-range 1 20',
      { LLAMA_ARG_THREADS: '3' },
    );
    expect(byKey(childOptions)).toEqual({
      'ctx-size': '8192',
      'n-gpu-layers': '-1',
      slots: '0',
      metrics: '1',
      'api-prefix': '/p',
      timeout: '9',
      'control-vector-layer-range': '1 20',
    });
  });

  it('get a time-out of none in the only way that a child understands', () => {
    expect(byKey(parse('--timeout 0').childOptions)).toEqual({ timeout: '-1' });
    expect(byKey(parse('', { LLAMA_ARG_TIMEOUT: '0' }).childOptions)).toEqual({ timeout: '-1' });
  });

  it('take what follows as the value, even when it looks like an option', () => {
    expect(byKey(parse('--chat-template --jinja').childOptions)).toEqual({ 'chat-template': '--jinja' });
  });

  it('keep the last of a repeated option, in any spelling, and say so', () => {
    const { childOptions, warnings } = parse('-c 1 --temp 0 --ctx-size=2 --ctx_size 3 --slots --no-slots');
    expect(byKey(childOptions)).toEqual({ 'ctx-size': '3', temperature: '0', slots: '0' });
    expect(warnings).toEqual([
      '--ctx-size is given 3 times: the last one counts',
      '--slots is given 2 times: the last one counts',
    ]);
  });

  it('that cannot hold for all models are left out with a warning', () => {
    expect(parse('--log-file l --alias x').warnings).toEqual([
      expect.stringMatching(/^--log-file is not passed on/),
      expect.stringMatching(/^--alias is not passed on/),
    ]);
  });
});

describe('running the binary in our place', () => {
  it.each([
    '-m a.gguf',
    '--model=a.gguf',
    '-hf u/r',
    '--docker_repo gemma3',
    '--gpt-oss-20b-default',
    '--fim-qwen-7b-spec',
  ])('is for %s', (line) => {
    expect(parse(line)).toMatchObject({ directModel: true, directQuery: false });
  });

  it.each(['', '-mu http://localhost/a.gguf', '--spec-default', '--models-dir m', '--metrics=off'])(
    'is not for %j',
    (line) => {
      expect(parse(line)).toMatchObject({ directModel: false, directQuery: false });
    },
  );

  it('is for a model in the environment, unless the command line empties it', () => {
    expect(parse('', { LLAMA_ARG_HF_REPO: 'u/r' }).directModel).toBe(true);
    expect(parse('', { LLAMA_ARG_MODEL: '' }).directModel).toBe(false);
    expect(parse('--model=', { LLAMA_ARG_MODEL: 'a.gguf' }).directModel).toBe(false);
  });

  it.each(['--version', '--list-devices', '-cl', '-h', '--completion-bash'])(
    'is for the question %s',
    (line) => {
      expect(parse(line)).toMatchObject({ directModel: false, directQuery: true });
    },
  );

  it('leaves the judgement of values to the binary, but not that of options', () => {
    expect(parse('-m a.gguf --models-max -1 --port x').nativeArgs).toEqual([
      ...['-m', 'a.gguf', '--models-max', '-1', '--port', 'x'],
    ]);
    expect(problemsOf(['-m', 'a.gguf', '--ctx-sise', '1'])).toHaveLength(1);
  });

  it('takes the arguments in order, without ours, as the native parser reads them', () => {
    const { nativeArgs } = parse(
      '--demo -m a.gguf --queue-max 3 --ctx_size=512 --slots=off --no-warmup --metrics=off --llama-server x -ngl -1',
    );
    expect(nativeArgs).toEqual([
      '-m',
      'a.gguf',
      '--ctx-size',
      '512',
      '--no-slots',
      '--no-warmup',
      '-ngl',
      '-1',
    ]);
  });
});

describe('looking for the binary before its table exists', () => {
  it.each([
    [['--port', '1', '--llama-server', '/a'], '/a'],
    [['--llama_server=/a'], '/a'],
    [['--llama-server', '/a', '--llama-server=/b'], '/b'],
    [['--llama-server='], ''],
    [['--llama-server'], undefined],
    [['--port', '1'], undefined],
  ])('finds in %j %j', (args, expected) => {
    expect(scanForBinary(args)).toBe(expected);
  });
});

/** One use of an option: what is typed, and what it must mean. */
interface Use {
  readonly option: Option;
  readonly args: readonly string[];
  readonly meaning: string;
}

const withUnderscores = (name: string): string => `--${name.slice(2).replaceAll('-', '_')}`;

/** Any spelling of any of the options, with any value. */
function useOf(options: readonly Option[]): fc.Arbitrary<Use> {
  return fc
    .record({
      option: fc.constantFrom(...options),
      pick: fc.nat(),
      underscores: fc.boolean(),
      inline: fc.boolean(),
      values: fc.tuple(fc.string(), fc.string()),
    })
    .map(({ option, pick, underscores, inline, values }) => {
      const names = [...option.positive, ...option.negative];
      const name = names[pick % names.length] ?? '';
      const typed = underscores && name.startsWith('--') ? withUnderscores(name) : name;
      if (option.valueCount === 0) {
        return { option, args: [typed], meaning: option.negative.includes(name) ? '0' : '1' };
      }
      const given = values.slice(0, option.valueCount);
      const [first = '', ...others] = given;
      const args = inline && name.startsWith('--') ? [`${typed}=${first}`, ...others] : [typed, ...given];
      return { option, args, meaning: given.join(' ') };
    });
}

describe('for every option of the recorded help', () => {
  const options = new StartOptions(table);

  it('any spelling means the same, and of several the last one counts', () => {
    fc.assert(
      fc.property(fc.array(useOf(table.options), { maxLength: 12 }), (uses) => {
        const { given, problems } = scanArguments(
          uses.flatMap(({ args }) => args),
          options,
        );
        const expected = new Map(uses.map(({ option, meaning }) => [option, meaning]));
        expect(problems).toEqual([]);
        expect(new Map([...given].map(([option, texts]) => [option, texts.at(-1)]))).toEqual(expected);
      }),
      { numRuns: 500 },
    );
  });

  it('the order of different options does not matter', () => {
    const distinct = fc.uniqueArray(useOf(table.options), {
      maxLength: 12,
      selector: ({ option }) => option,
    });
    const twoOrders = distinct.chain((uses) =>
      fc.tuple(fc.constant(uses), fc.shuffledSubarray(uses, { minLength: uses.length })),
    );
    fc.assert(
      fc.property(twoOrders, ([uses, shuffled]) => {
        const argsOf = (list: readonly Use[]): string[] => list.flatMap(({ args }) => [...args]);
        expect(scanArguments(argsOf(shuffled), options).given).toEqual(
          scanArguments(argsOf(uses), options).given,
        );
      }),
    );
  });

  it('rendered options are read back to what renders the same', () => {
    const checkedByUs = new Set(['timeout', 'api-prefix', 'cors-methods', 'cors-headers']);
    const inherited = table.options.filter(
      ({ key }) => !NOT_INHERITED_KEYS.has(key) && !checkedByUs.has(key),
    );
    const word = fc.string({ minLength: 1 }).filter((text) => !/\s/.test(text));
    const textFor = ({ valueCount }: Option): fc.Arbitrary<string> => {
      if (valueCount === 0) return fc.constantFrom('1', '0', 'on', 'false', '', 'no');
      return valueCount === 1 ? fc.string() : fc.tuple(word, word).map((both) => both.join(' '));
    };
    const anyValues = fc
      .subarray(inherited)
      .chain((chosen) =>
        fc.tuple(...chosen.map((option) => textFor(option).map((text): [Option, string] => [option, text]))),
      )
      .map((entries): OptionValues => new Map(entries));
    fc.assert(
      fc.property(anyValues, (values) => {
        const args = renderArgs(values);
        const { childOptions, nativeArgs } = parseCommandLine(args, table, {});
        expect(renderArgs(childOptions)).toEqual(args);
        expect(nativeArgs).toEqual(args);
      }),
    );
  });
});
