import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseCommandLine, type CommandLine } from '../../../src/config/command-line.js';
import { HELPER_ONLY_KEYS } from '../../../src/config/helper-options.js';
import type { NativeConfig } from '../../../src/config/setting-source.js';
import { recordedTable as table } from './recorded-help.js';

function parse(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  config: Record<string, string> = {},
): CommandLine {
  return parseCommandLine(args, table, env, configOf(config));
}

function configOf(lines: Record<string, string>): NativeConfig {
  const given = Object.entries(lines).map(([key, text]) => {
    const option = table.findKey(key)?.option;
    if (option === undefined) throw new Error(`${key} is no option`);
    return [option, { text, from: 'config.ini' }] as const;
  });
  return { given: new Map(given), warnings: [] };
}

const childKeys = ({ childOptions }: CommandLine): string[] => [...childOptions.keys()].map(({ key }) => key);

describe('the options of the helper', () => {
  const only = [
    ...['--tools', 'all'],
    ...['--tools-runtime', 'podman:alpine'],
    ...['--mcp-servers-config', 'mcp.json'],
    ...['--mcp-servers-json', '{}'],
    '--agent',
  ];

  test('are not those of the models, which would each start every MCP server again', () => {
    const line = parse([...only, '-c', '512']);
    expect(line.helperArgs).toEqual([...only, '--timeout', '3600']);
    expect(childKeys(line)).toEqual(['ctx-size']);
  });

  test('of the web UI are also those of the models', () => {
    const shared = [
      ...['--no-webui', '--ui-mcp-proxy', '--path', 'site'],
      ...['--ui-config', '{}', '--ui-config-file', 'ui.json', '--threads-http', '3'],
    ];
    const line = parse(shared);
    expect(line.helperArgs).toEqual([...shared, '--timeout', '3600']);
    expect(childKeys(line).sort()).toEqual(
      ['path', 'threads-http', 'webui', 'webui-config', 'webui-config-file', 'webui-mcp-proxy'].sort(),
    );
  });

  test('are none that make it listen elsewhere, load or download a model, or share its port', () => {
    const args = [
      ...['--host', '0.0.0.0', '--port', '1', '--api-prefix', '/p', '--reuse-port', '--api-key', 'k'],
      ...['--models-dir', 'd', '--models-preset', 'p', '-mu', 'http://localhost/m', '--hf-token', 't'],
    ];
    expect(parse(args).helperArgs).toEqual(['--timeout', '3600']);
    expect(childKeys(parse(args))).not.toContain('reuse-port');
  });

  test('keep their order and repetitions: which comes last decides what may be done', () => {
    const args = ['--agent', '--tools', 'read_file', '--tools', 'get_info', '--no-agent'];
    expect(parse(args).helperArgs.slice(0, -2)).toEqual(args);
  });

  test('never take a value for an option', () => {
    const { helperArgs, settings } = parse(['--chat-template', '--agent', '--grammar', '--tools']);
    expect(helperArgs).toEqual(['--timeout', '3600']);
    expect(settings).toMatchObject({ agent: false, tools: undefined });
  });

  test('have our form translated: = and on or off', () => {
    const { helperArgs } = parse(['--tools=all', '--agent=off', '--ui=off']);
    expect(helperArgs.slice(0, -2)).toEqual(['--tools', 'all', '--no-agent', '--no-webui']);
  });

  test('have no empty list of tools, with which the binary does not start', () => {
    const { helperArgs, settings } = parse(['--tools', '', '--ui-mcp-proxy']);
    expect(helperArgs.slice(0, -2)).toEqual(['--ui-mcp-proxy']);
    expect(settings.tools).toBeUndefined();
  });

  test('give no time-out in the only way in which the binary understands it', () => {
    expect(parse(['--timeout', '0']).helperArgs).toEqual(['--timeout', '-1']);
    expect(parse([], { LLAMA_ARG_TIMEOUT: '7' }).helperArgs).toEqual(['--timeout', '7']);
  });

  test('that are the helper’s alone are named by keys that the binary has', () => {
    expect([...HELPER_ONLY_KEYS].filter((key) => table.find(`--${key}`)?.option.key !== key)).toEqual([]);
  });
});

describe('what is on', () => {
  type On = { tools: string | undefined; uiMcpProxy: boolean };
  const on = ({ settings: { tools, uiMcpProxy } }: CommandLine): On => ({ tools, uiMcpProxy });

  test.each<[string, string[], NodeJS.ProcessEnv, Record<string, string>, On]>([
    ['nothing', [], {}, {}, { tools: undefined, uiMcpProxy: false }],
    ['an agent', ['--agent'], {}, {}, { tools: 'all', uiMcpProxy: true }],
    ['an agent, then fewer tools', ['-ag', '--tools', 'x'], {}, {}, { tools: 'x', uiMcpProxy: true }],
    ['fewer tools, then an agent', ['--tools', 'x', '-ag'], {}, {}, { tools: 'all', uiMcpProxy: true }],
    ['tools, then no agent', ['--tools', 'x', '-no-ag'], {}, {}, { tools: undefined, uiMcpProxy: false }],
    ['no agent, then tools', ['-no-ag', '--tools', 'x'], {}, {}, { tools: 'x', uiMcpProxy: false }],
    [
      'an agent, then no proxy',
      ['--agent', '--no-ui-mcp-proxy'],
      {},
      {},
      { tools: 'all', uiMcpProxy: false },
    ],
    [
      'an agent in the environment above its tools there',
      [],
      { LLAMA_ARG_TOOLS: 'x', LLAMA_ARG_AGENT: '1' },
      {},
      { tools: 'all', uiMcpProxy: true },
    ],
    [
      'tools of the command line above the agent of the environment',
      ['--tools', 'x'],
      { LLAMA_ARG_AGENT: '1' },
      {},
      { tools: 'x', uiMcpProxy: true },
    ],
    [
      'no agent in the environment above tools in the config file',
      [],
      { LLAMA_ARG_NO_AGENT: '' },
      { tools: 'x', 'ui-mcp-proxy': '1' },
      { tools: undefined, uiMcpProxy: false },
    ],
    [
      'tools in the environment above the agent of the config file',
      [],
      { LLAMA_ARG_TOOLS: 'x' },
      { agent: '1' },
      { tools: 'x', uiMcpProxy: true },
    ],
  ])('follows the order in which the binary comes upon it: %s', (_, args, env, config, expected) => {
    expect(on(parse(args, env, config))).toEqual(expected);
  });

  const given = { uiConfig: '{"a":1}', uiConfigFile: undefined };
  const file = { uiConfig: undefined, uiConfigFile: 'f' };
  test.each<[string, string[], NodeJS.ProcessEnv, Record<string, string>, typeof given | typeof file]>([
    ['the file, given last', ['--ui-config', '{"a":1}', '--ui-config-file', 'f'], {}, {}, file],
    ['the text, given last', ['--ui-config-file', 'f', '--ui-config', '{"a":1}'], {}, {}, given],
    [
      'the text of the command line',
      ['--webui-config', '{"a":1}'],
      { LLAMA_ARG_UI_CONFIG_FILE: 'f' },
      {},
      given,
    ],
    [
      'the file, of both in the environment',
      [],
      { LLAMA_ARG_UI_CONFIG_FILE: 'f', LLAMA_ARG_UI_CONFIG: '{}' },
      {},
      file,
    ],
    ['the text of the environment', [], { LLAMA_ARG_UI_CONFIG: '{"a":1}' }, { 'ui-config-file': 'f' }, given],
  ])('of defaults for the web UI is what comes last: %s', (_, args, env, config, expected) => {
    expect(parse(args, env, config).settings).toMatchObject(expected);
  });

  test('is what the last of any number of uses leaves', () => {
    const uses = {
      '--agent': { tools: 'all', uiMcpProxy: true },
      '--no-agent': { tools: undefined, uiMcpProxy: false },
      '--tools=x': { tools: 'x' },
      '--tools=y': { tools: 'y' },
      '--ui-mcp-proxy': { uiMcpProxy: true },
      '--no-ui-mcp-proxy': { uiMcpProxy: false },
    } as const;
    const words = Object.keys(uses) as (keyof typeof uses)[];
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...words), { maxLength: 8 }), (args) => {
        let expected: On = { tools: undefined, uiMcpProxy: false };
        for (const arg of args) expected = { ...expected, ...uses[arg] };
        expect(on(parse(args))).toEqual(expected);
      }),
    );
  });
});
