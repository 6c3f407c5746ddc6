// Messages why a recording has no score, and notes beside a score: the service's English text, or its Chinese translation.

// Each pattern matches the first words and the figures of a message of audioscore.data.audio, .data.audio_checks or
// .scoring. tests/services/page/test_refusals.py compares them with the messages of the library.
const CHINESE = [
  [/too short: ([\d.]+) s.*?([\d.]+) s/, "录音太短：只有 $1 秒，至少需要 $2 秒。请多录一些。"],
  [/too long: ([\d.]+) s.*?([\d.]+) s/, "录音太长：$1 秒，最长 $2 秒。请剪短。"],
  [/is ([\d.]+) s long; at most ([\d.]+) s/, "录音太长：$1 秒，最长 $2 秒。请剪短。"],
  [/is longer than ([\d.]+) s/, "录音太长：最长 $1 秒。请剪短。"],
  [/has (\d+) bytes; at most (\d+)/, "文件太大：$1 字节，最大 $2 字节。请换一段较短的录音。"],
  [/phase-cancelled:/, "左右声道相位相反，混合后互相抵消。请只导出其中一个声道。"],
  [/nearly silent: ([\d.]+%)/, "几乎没有声音：$1 是静音。请只保留演唱部分。"],
  [/silent: .*?(-?[\d.]+|-inf) dBFS/, "没有声音：电平为 $1 dBFS。请检查麦克风，或提高音量后重新导出。"],
  [/clipped: (\d+%)/, "削波失真：$1 的采样到达满幅。请降低录音电平后重录。"],
  [/no voice: (\d+%)/, "没有检测到歌声：声音较大的部分只有 $1 有音高。请确认录音中有人演唱。"],
  [/is empty \(0 bytes\)/, "文件是空的（0 字节）。请重新导出。"],
  [/has no audio stream/, "文件中没有音轨。请导出带音轨的文件。"],
  [/holds no audio samples/, "文件中没有音频数据。请重新导出。"],
  [/has (\d+) channels; at most (\d+)/, "声道太多：$1 个声道，最多 $2 个。请混合为单声道或立体声。"],
  [/cannot be decoded/, "无法解码。请重新导出为 m4a、mp3、flac 或 wav。"],
  [/decoding takes longer than ([\d.]+) s/, "解码超过 $1 秒。请重新导出。"],
  [/decoding process ended/, "文件使解码程序异常退出。请重新导出。"],
  [/ends after ([\d.]+) s, .*? ([\d.]+) s/, "文件不完整：只有 $1 秒，文件头声明 $2 秒。请重新导出或重新传输。"],
  [/(\d+) of its packets are damaged, .*?([\d.]+) s/, "文件损坏：$1 个数据包无法解码，第一个在 $2 秒处。请重新导出或重新传输。"],
  [/([\d.]+) s at ([\d.]+) s.* missing/, "文件缺少 $1 秒声音，位置在 $2 秒处。请重新导出或重新传输。"],
  [/declares a sample rate of (-?\d+) Hz/, "采样率 $1 Hz 不受支持。请重新导出。"],
  [/contains NaN or infinite samples|holds samples up to/, "文件中的采样值异常。请重新导出。"],
  [/the model output is/, "模型无法给出分数。"],
];

const CHINESE_NOTES = [
  [/narrow band: .*? (\d+) Hz .*? (\d+) Hz are expected/, "频带太窄：$1 Hz 以上没有信号，应达到 $2 Hz。请使用原始录音。"],
  [/much silence: (\d+%) .*?(\d+%)/, "静音太多：$1 是静音，超过 $2。请只保留演唱部分。"],
  [/much noise: .*?(\d+) dB, below (\d+) dB/, "噪声太大：信噪比为 $1 dB，低于 $2 dB。请在安静的环境中清唱重录。"],
  [/DC offset: .*?([+-][\d.]+)/, "直流偏移：采样的平均值为满幅的 $1。请去除偏移。"],
  [/skipped packets: (\d+)/, "跳过了 $1 个无法解码的数据包。"],
  [/gaps: ([\d.]+) s at ([\d.]+) s/, "录音中断：缺少 $1 秒，位置在 $2 秒处。"],
  [/missing end: .*? ([\d.]+) s/, "结尾不完整：缺少 $1 秒。"],
  [/wrong size: .*? ([\d.]+) s/, "文件头声明的长度少 $1 秒，已使用全部声音。"],
  [/unread data: (\d+)/, "文件末尾有 $1 字节未读取的数据。"],
  [/padding: (\d+)/, "文件末尾有 $1 字节填充的零，未使用。"],
  [/open end:/, "文件末尾没有结束标记，可能缺少声音。"],
  [/joined files:/, "文件由多个录音连接而成，已全部使用。"],
  [/several streams: .*?(\d+) of (\d+)/, "文件有 $2 个音轨，使用了第 $1 个。"],
];

/** The message in `language`; a message without a Chinese translation is quoted. */
export function refusal(message, language) {
  return translated(message, language, CHINESE, "这段录音无法评分");
}

/** A note in `language`, as for `refusal`. */
export function note(message, language) {
  return translated(message, language, CHINESE_NOTES, "注意");
}

function translated(message, language, texts, introduction) {
  if (language !== "zh") {
    const shown = message.replace(/^(the )?(uploaded )?recording: /, ""); // the name of every upload of the page
    return shown.charAt(0).toUpperCase() + shown.slice(1);
  }
  for (const [pattern, chinese] of texts) {
    const found = message.match(pattern);
    if (found) {
      return chinese.replace(/\$(\d)/g, (_, group) => found[group]);
    }
  }
  return `${introduction}：${message}`;
}
